"""The two networks as plain PyTorch code, for the benchmarks to compare speeds with; PyTorch is no dependency.

Eager mode, float32, explicit attention: what one writes without thinking of speed.
"""
from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.key, self.query, self.value, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.ln1(x)
        q, k, v = (part(y).view(*y.shape[:2], self.heads, -1).transpose(1, 2)  # (B, H, T, D) each
                   for part in (self.query, self.key, self.value))
        weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)  # (B, H, T, T)
        x = x + self.proj((weights @ v).transpose(1, 2).reshape(x.shape))
        y = self.up(self.ln2(x))
        return x + self.down(y * torch.sigmoid(1.702 * y))


class GPT(nn.Module):
    """Stage 1's transformer, ``GELU_2``."""

    def __init__(self, vocab_size: int, n_embd: int, n_layer: int, n_head: int, block_size: int) -> None:
        super().__init__()
        self.tok_emb, self.pos_emb = nn.Embedding(vocab_size, n_embd), nn.Parameter(torch.zeros(1, block_size, n_embd))
        self.blocks = nn.Sequential(*(_Block(n_embd, n_head) for _ in range(n_layer)))
        self.ln_f, self.head = nn.LayerNorm(n_embd), nn.Linear(n_embd, vocab_size, bias=False)

    def forward(self, tokens: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """tokens (B, T) int64, masks (B, T) float32 -> logits (B, T, V)."""
        return self.head(self.ln_f(self.blocks(self.tok_emb(tokens) * (1 - masks[..., None]) + self.pos_emb)))


def training_step(net: GPT, tokens: np.ndarray, masks: np.ndarray, rate: float) -> Callable[[], None]:
    """A function that takes an Adam step of the published loss: tokens (B, T) int32, masks (B, T) float32."""
    optimizer = torch.optim.Adam(net.parameters(), lr=rate, betas=(0.9, 0.95))
    known, holes = torch.from_numpy(tokens).long(), torch.from_numpy(masks)

    def step() -> None:
        optimizer.zero_grad()
        each = functional.cross_entropy(net(known, holes).flatten(0, 1), known.flatten(), reduction='none')
        (each * holes.flatten()).mean().backward()
        optimizer.step()

    return step


class _ResidualBlock(nn.Sequential):
    def __init__(self, channels: int) -> None:
        super().__init__(nn.ReflectionPad2d(2), nn.Conv2d(channels, channels, 3, dilation=2), nn.ReLU(),
                         nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


def generator(residual_blocks: int, base_channels: int) -> nn.Module:
    """Stage 2's generator behind its input: (B, 6, S, S), the masked picture and the prior -> (B, 3, S, S)."""
    c = base_channels
    return nn.Sequential(
        nn.ReflectionPad2d(3), nn.Conv2d(6, c, 7), nn.ReLU(),
        nn.Conv2d(c, 2 * c, 4, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(2 * c, 4 * c, 4, stride=2, padding=1), nn.ReLU(),
        *(_ResidualBlock(4 * c) for _ in range(residual_blocks)),
        nn.ConvTranspose2d(4 * c, 2 * c, 4, stride=2, padding=1), nn.ReLU(),
        nn.ConvTranspose2d(2 * c, c, 4, stride=2, padding=1), nn.ReLU(),
        nn.ReflectionPad2d(3), nn.Conv2d(c, 3, 7), nn.Tanh())


def discriminator() -> nn.Module:
    """Stage 2's PatchGAN: (B, 3, S, S) -> scores (B, 1, S / 8 - 2, S / 8 - 2) in (0, 1)."""
    layers: list[nn.Module] = []
    for n_in, n_out, stride in ((3, 64, 2), (64, 128, 2), (128, 256, 2), (256, 512, 1)):
        layers += [nn.Conv2d(n_in, n_out, 4, stride, 1, bias=False), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(512, 1, 4, 1, 1, bias=False), nn.Sigmoid())


def adversarial_step(painter: nn.Module, judge: nn.Module, arrays: tuple[np.ndarray, ...], rate: float,
                     judge_rate: float, adversarial_weight: float) -> Callable[[], None]:
    """A function that takes an Adam step of both networks with the adversarial and the L1 loss.

    Args:
        arrays: images and priors (B, 3, S, S), masks (B, 1, S, S), float32 in [0, 1].
    """
    images, priors, masks = map(torch.from_numpy, arrays)
    optimizers = [torch.optim.Adam(net.parameters(), lr=own, betas=(0.9, 0.9))
                  for net, own in ((painter, rate), (judge, judge_rate))]
    inputs = torch.cat((images * (1 - masks) + masks, priors), 1)

    def cross_entropy(scores: torch.Tensor, real: bool) -> torch.Tensor:
        return functional.binary_cross_entropy(scores, torch.full_like(scores, float(real)))

    def step() -> None:
        output = (painter(inputs) + 1) / 2
        optimizers[1].zero_grad()
        ((cross_entropy(judge(images), True) + cross_entropy(judge(output.detach()), False)) / 2).backward()
        optimizers[1].step()
        optimizers[0].zero_grad()
        (adversarial_weight * cross_entropy(judge(output), True)
         + (output - images).abs().mean() / masks.mean()).backward()
        optimizers[0].step()

    return step
