"""The stage-2 losses (paper, equations 6 and 7).

The table ``LOSSES`` in ``config.py`` names the functions of this module that make up the generator's loss. Each has the
arguments of ``l1`` and returns a scalar without its weight.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
from mindspore import nn, ops

# Positions in VGG19's sixteen maps.
CONTENT_LAYERS = (0, 2, 4, 8, 12)  # relu1_1, relu2_1, relu3_1, relu4_1, relu5_1
STYLE_LAYERS = (3, 7, 11, 13)  # relu2_2, relu3_4, relu4_4, relu5_2
_EPSILON = 1e-12


class Networks(nn.Cell):
    """What the losses need beside the pictures.

    Args:
        discriminator: pictures (B, 3, S, S) -> score map in (0, 1), feature maps.
        vgg: pictures -> sixteen feature maps; None where no loss needs them.
        over_ranks: a scalar's mean over the ranks.
    """

    def __init__(self, discriminator: nn.Cell, vgg: Any, over_ranks: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.discriminator, self.vgg, self.over_ranks = discriminator, vgg, over_ranks


GeneratorLoss = Callable[[ms.Tensor, ms.Tensor, ms.Tensor, ms.Tensor, Networks], ms.Tensor]


def l1(output: ms.Tensor, images: ms.Tensor, masks: ms.Tensor, pixel_weights: ms.Tensor,
       networks: Networks) -> ms.Tensor:
    """Mean absolute error over the whole picture, divided by the mask's mean (over all ranks' pictures).

    Args:
        output, images: the generator's pictures and the originals, (B, 3, S, S) in [0, 1].
        masks: (B, 1, S, S), 1 = hole.
        pixel_weights: how often a pixel counts, (B, 1, S, S) (``dataset.boundary_weights``).
    """
    share = ops.maximum(networks.over_ranks(masks.mean()), ms.Tensor(1e-4, ms.float32))
    return ((output - images).abs() * pixel_weights).mean() / share


def adv(output: ms.Tensor, images: ms.Tensor, masks: ms.Tensor, pixel_weights: ms.Tensor,
        networks: Networks) -> ms.Tensor:
    """Cross entropy of the discriminator's scores of the generator's pictures against 'real'."""
    scores, _ = networks.discriminator(output)
    return cross_entropy(ops.cast(scores, ms.float32), True)


def content(output: ms.Tensor, images: ms.Tensor, masks: ms.Tensor, pixel_weights: ms.Tensor,
            networks: Networks) -> ms.Tensor:
    """Sum over five layers of the mean absolute difference of VGG features."""
    maps, wanted = networks.vgg(output), networks.vgg(images)
    total = ms.Tensor(0.0, ms.float32)
    for i in CONTENT_LAYERS:
        total = total + (maps[i] - wanted[i]).abs().mean()
    return total


def style(output: ms.Tensor, images: ms.Tensor, masks: ms.Tensor, pixel_weights: ms.Tensor,
          networks: Networks) -> ms.Tensor:
    """Sum over four layers of the mean absolute difference of the hole's Gram matrices."""
    maps, wanted = networks.vgg(output * masks), networks.vgg(images * masks)
    total = ms.Tensor(0.0, ms.float32)
    for i in STYLE_LAYERS:
        total = total + (gram(maps[i]) - gram(wanted[i])).abs().mean()
    return total


def gram(x: ms.Tensor) -> ms.Tensor:
    """(B, C, H, W) -> (B, C, C), divided by C * H * W."""
    b, c, h, w = x.shape
    flat = x.reshape(b, c, h * w)  # (B, C, H * W)
    return ops.bmm(flat, flat.transpose(0, 2, 1)) / (c * h * w)


def cross_entropy(scores: ms.Tensor, real: bool) -> ms.Tensor:
    """Binary cross entropy of a score map in (0, 1) against all real (1) or all fake (0)."""
    likelihood = scores if real else 1.0 - scores
    return -ops.log(ops.maximum(likelihood, ms.Tensor(_EPSILON, ms.float32))).mean()


def discriminator_loss(real_scores: ms.Tensor, fake_scores: ms.Tensor) -> tuple[ms.Tensor, tuple[ms.Tensor, ms.Tensor]]:
    """Mean of the two cross entropies: (total, (real, fake))."""
    real, fake = cross_entropy(real_scores, True), cross_entropy(fake_scores, False)
    return (real + fake) / 2.0, (real, fake)


def generator_loss(losses: Sequence[tuple[GeneratorLoss | None, float]],
                   networks: Networks) -> Callable[..., tuple[ms.Tensor, tuple[ms.Tensor, ...]]]:
    """The weighted sum of losses, as a function that can be compiled.

    Args:
        losses: functions and weights; the part of None is 0.

    Returns:
        (output, images, masks, pixel_weights) -> (total, parts); the arguments are those of ``l1``.
    """
    def loss(output: ms.Tensor, images: ms.Tensor, masks: ms.Tensor,
             pixel_weights: ms.Tensor) -> tuple[ms.Tensor, tuple[ms.Tensor, ...]]:
        zero = ms.Tensor(0.0, ms.float32)
        total = zero
        parts: tuple[ms.Tensor, ...] = ()
        for function, weight in losses:
            part = zero if function is None else function(output, images, masks, pixel_weights, networks)
            total = total + weight * part
            parts = (*parts, part)
        return total, parts

    return loss
