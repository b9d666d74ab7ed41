"""Masked cross entropy (paper, equation 4: the negative log-likelihood of the missing tokens given the others)."""
from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
from mindspore import ops


def masked_cross_entropy(logits: ms.Tensor, tokens: ms.Tensor, masks: ms.Tensor,
                         per_masked_token: bool,
                         over_ranks: Callable[[ms.Tensor], ms.Tensor]) -> tuple[ms.Tensor, dict[str, ms.Tensor]]:
    """Cross entropy of the missing tokens.

    Args:
        logits: (B, T, V) float32.
        tokens: (B, T) int32, the original ones.
        masks: (B, T) float32, 1 = missing.
        per_masked_token: divide by the number of missing tokens (``--dynamic_weight``) instead of by all B * T
            positions, as published.

        over_ranks: mean over the ranks of the number of missing tokens.

    Returns:
        (total, parts); ``parts['nll']`` is the mean per missing token, comparable between masks.
    """
    vocab = logits.shape[-1]
    each = ops.cross_entropy(logits.reshape(-1, vocab), tokens.reshape(-1), reduction='none')  # (B * T,)
    missing = each * masks.reshape(-1)
    nll = missing.sum() / ops.maximum(over_ranks(masks.sum()), ms.Tensor(1.0, ms.float32))
    total = nll if per_masked_token else missing.mean()
    return total, {'nll': nll}
