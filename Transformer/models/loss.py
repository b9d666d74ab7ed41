"""The stage-1 losses (paper, equation 4: the negative log-likelihood of the missing tokens given the others).

The table ``LOSSES`` in ``config.py`` names the functions of this module. Each takes logits (N, V) float32 and tokens
(N,) int32, and returns the loss of each of the N positions, (N,) float32.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

import mindspore as ms
from mindspore import ops

PositionLoss = Callable[[ms.Tensor, ms.Tensor], ms.Tensor]


def nll(logits: ms.Tensor, tokens: ms.Tensor) -> ms.Tensor:
    """Cross entropy."""
    return ops.cross_entropy(logits, tokens, reduction='none')


def masked_loss(losses: Sequence[tuple[PositionLoss, float]], per_masked_token: bool,
                over_ranks: Callable[[ms.Tensor], ms.Tensor]) -> Callable[..., tuple[ms.Tensor, tuple[ms.Tensor, ...]]]:
    """The weighted sum of losses of the missing tokens, as a function that can be compiled.

    Args:
        losses: functions and weights.
        per_masked_token: divide by the number of missing tokens (``--dynamic_weight``) instead of by all B * T
            positions, as published.
        over_ranks: mean over the ranks of the number of missing tokens.

    Returns:
        (logits (B, T, V) float32, tokens (B, T) int32, masks (B, T) float32 with 1 = missing) -> (total, parts); a part
        is the mean per missing token, comparable between masks.
    """
    def loss(logits: ms.Tensor, tokens: ms.Tensor, masks: ms.Tensor) -> tuple[ms.Tensor, tuple[ms.Tensor, ...]]:
        logits, tokens = logits.reshape(-1, logits.shape[-1]), tokens.reshape(-1)  # (B * T, V), (B * T,)
        n_missing = ops.maximum(over_ranks(masks.sum()), ms.Tensor(1.0, ms.float32))
        total = ms.Tensor(0.0, ms.float32)
        parts: tuple[ms.Tensor, ...] = ()
        for function, weight in losses:
            missing = function(logits, tokens) * masks.reshape(-1)  # (B * T,)
            part = missing.sum() / n_missing
            total = total + weight * (part if per_masked_token else missing.mean())
            parts = (*parts, part)
        return total, parts

    return loss
