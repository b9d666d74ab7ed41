"""The stage-2 losses (paper, equations 6 and 7); each returns its value unweighted."""
from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
from mindspore import ops

# Positions in VGG19's sixteen maps.
CONTENT_LAYERS = (0, 2, 4, 8, 12)  # relu1_1, relu2_1, relu3_1, relu4_1, relu5_1
STYLE_LAYERS = (3, 7, 11, 13)  # relu2_2, relu3_4, relu4_4, relu5_2
_EPSILON = 1e-12


def adversarial(scores: ms.Tensor, real: bool) -> ms.Tensor:
    """Binary cross entropy of a score map in (0, 1) against all real (1) or all fake (0)."""
    likelihood = scores if real else 1.0 - scores
    return -ops.log(ops.maximum(likelihood, ms.Tensor(_EPSILON, ms.float32))).mean()


def discriminator_loss(real_scores: ms.Tensor, fake_scores: ms.Tensor) -> tuple[ms.Tensor, dict[str, ms.Tensor]]:
    """Mean of the two cross entropies: (total, parts)."""
    real, fake = adversarial(real_scores, True), adversarial(fake_scores, False)
    return (real + fake) / 2.0, {'real': real, 'fake': fake}


def masked_l1(output: ms.Tensor, images: ms.Tensor, masks: ms.Tensor, over_ranks: Callable[[ms.Tensor], ms.Tensor],
              weights: ms.Tensor | float = 1.0) -> ms.Tensor:
    """Mean absolute error over the whole picture, divided by the mask's mean (over all ranks' pictures).

    Args:
        weights: how often a pixel counts, (B, 1, S, S) (``dataset.rim_weights``).
    """
    share = ops.maximum(over_ranks(masks.mean()), ms.Tensor(1e-4, ms.float32))
    return ((output - images).abs() * weights).mean() / share


def gram(x: ms.Tensor) -> ms.Tensor:
    """(B, C, H, W) -> (B, C, C), divided by C * H * W."""
    b, c, h, w = x.shape
    flat = x.reshape(b, c, h * w)  # (B, C, H * W)
    return ops.bmm(flat, flat.transpose(0, 2, 1)) / (c * h * w)


def content(maps: tuple[ms.Tensor, ...], wanted: tuple[ms.Tensor, ...]) -> ms.Tensor:
    """Sum over five layers of the mean absolute difference of VGG features."""
    total = ms.Tensor(0.0, ms.float32)
    for i in CONTENT_LAYERS:
        total = total + (maps[i] - wanted[i]).abs().mean()
    return total


def style(maps: tuple[ms.Tensor, ...], wanted: tuple[ms.Tensor, ...]) -> ms.Tensor:
    """Sum over four layers of the mean absolute difference of Gram matrices."""
    total = ms.Tensor(0.0, ms.float32)
    for i in STYLE_LAYERS:
        total = total + (gram(maps[i]) - gram(wanted[i])).abs().mean()
    return total
