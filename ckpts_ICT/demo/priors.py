"""Priors that stage 1 makes while the demo pair is trained."""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ckpts_ICT.demo.data import PRIOR_SIZE, Data, enlarged, random_number, touched
from ckpts_ICT.demo.networks import GPT
from Transformer.models.sampling import halton_order

TOP_K = 40
WAYS = ((0, 1.0), (4, 0.6), (8, 0.6), (8, 0.8))  # passes (0: deterministic) and temperatures that training sees
LARGEST_HINT = 0.4


@torch.no_grad()
def expected(gpt: GPT, data: Data, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Deterministic priors (B, 3, P, P) in levels: the mean colours that one pass expects."""
    probabilities = gpt.logits(gpt(tokens, mask)).float().softmax(-1)  # (B, T, V)
    colours = torch.where(mask[..., None], (probabilities @ data.codebook_rgb).round(), data.codebook_rgb[tokens])
    return colours.transpose(1, 2).unflatten(2, (PRIOR_SIZE, PRIOR_SIZE))


@torch.no_grad()
def sampled(gpt: GPT, data: Data, tokens: torch.Tensor, mask: torch.Tensor, n_passes: int,
            temperature: float) -> torch.Tensor:
    """Sampled priors (B, 3, P, P) in levels, in few passes in the Halton order."""
    tokens, mask = tokens.clone(), mask.clone()
    rank = torch.from_numpy(halton_order(PRIOR_SIZE)).argsort().to(tokens.device).expand_as(tokens)
    rank = rank.masked_fill(~mask, rank.shape[1]).argsort(1).argsort(1)
    share = rank.float() / mask.sum(1, keepdim=True).clamp(min=1)  # 0 ... 1 in the hole, (B, T)
    for step in range(n_passes):
        best = (gpt.logits(gpt(tokens, mask)).float() / temperature).topk(TOP_K, dim=-1)
        drawn = torch.distributions.Categorical(logits=best.values).sample()  # (B, T)
        drawn = best.indices.gather(-1, drawn[..., None])[..., 0]
        until = 1 - math.cos(0.5 * math.pi * (step + 1) / n_passes)
        filled = mask & (share < (until if step < n_passes - 1 else 2.0))
        tokens, mask = torch.where(filled, drawn, tokens), mask & ~filled
    return data.priors_of(tokens)


def priors(gpt: GPT, data: Data, pictures: torch.Tensor, holes: torch.Tensor, n_passes: int,
           temperature: float, largest_hint: float = 0.0) -> torch.Tensor:
    """Priors (B, 3, P, P) in levels of pictures (B, 3, S, S) in levels with holes (B, S, S) bool.

    Args:
        largest_hint: up to this share of a hole's tokens, drawn for each picture, are the true ones.
    """
    tokens, mask = data.tokens_of(pictures), touched(holes)
    mask &= torch.rand_like(mask, dtype=torch.float) >= largest_hint * torch.rand(len(mask), 1, device=mask.device)
    if n_passes == 0:
        return expected(gpt, data, tokens, mask)
    return sampled(gpt, data, tokens, mask, n_passes, temperature)


@dataclass
class Pool:
    """Photographs with holes and the priors that stage 1 made of them.

    Attributes:
        pictures: (N, 3, 256, 256) uint8. holes: (N, 256, 256) bool. priors: (N, 3, 32, 32) uint8.
    """

    pictures: torch.Tensor
    holes: torch.Tensor
    priors: torch.Tensor

    @classmethod
    def made(cls, gpt: GPT, data: Data, size: int, at_once: int, toned: float) -> Pool:
        """A new pool, in about equal parts of each of WAYS, a third of it with wide holes."""
        parts = []
        for number, start in enumerate(range(0, size, at_once)):
            pictures = data.toned(data.random_crops(min(at_once, size - start), 0.7), toned)
            holes = (data.random_wide_holes if number % 3 == 2 else data.random_holes)(len(pictures))
            made = priors(gpt, data, pictures, holes, *WAYS[number % len(WAYS)], largest_hint=LARGEST_HINT)
            parts.append((pictures.to(torch.uint8), holes, made.to(torch.uint8)))
        return cls(*map(torch.cat, zip(*parts, strict=True)))

    def batch(self, data: Data, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pictures and priors in levels and holes; half the time only a part of each hole."""
        chosen = torch.randint(len(self.pictures), (count,), device=data.device)
        image, hole, prior = self.pictures[chosen].float(), self.holes[chosen], self.priors[chosen].float()
        if torch.rand(()) < 0.5:  # tokens no longer in the hole take their true colours
            hole = data.random_holes(count) & hole
            prior = torch.where(touched(hole).view(-1, 1, *prior.shape[2:]), prior, data.true_priors(image))
        return image, prior, hole


def random_views(image: torch.Tensor, prior: torch.Tensor, hole: torch.Tensor,
                 size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same ``size`` pixels of each, or their mirror image: (B, 3, s, s) in [0, 1] twice, (B, 1, s, s) float."""
    views = enlarged(prior), image / 255, hole[:, None].float()
    if torch.rand(()) < 0.5:
        views = tuple(view.flip(3) for view in views)
    top, left = (8 * random_number((image.shape[3] - size) // 8 + 1) for _ in range(2))
    prior, image, hole = (view[..., top:top + size, left:left + size].contiguous(
        memory_format=torch.channels_last) for view in views)
    return image, prior, hole
