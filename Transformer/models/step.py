"""One optimizer step of stage 1, and its validation loss."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import ops

from ict.device import precision
from ict.training import optimizers
from Transformer.models.loss import masked_cross_entropy
from Transformer.models.networks import GPT


def is_decayed(name: str) -> bool:
    """Weight decay is for matrices only: not for biases, norms and embeddings."""
    return name.endswith('.weight')


@dataclass(frozen=True)
class Recipe:
    """What a step does; the options of the same names."""

    learning_rate: float = 3e-4
    beta1: float = 0.9
    beta2: float = 0.95
    clip_norm: float = 0.0
    weight_decay: float = 0.0
    dynamic_weight: bool = False
    amp_level: str = 'O0'
    recompute: bool = False
    distributed: bool = False


class TrainStep:
    """Forward, backward, reduction over ranks, clipping, decoupled decay and Adam as one compiled function."""

    def __init__(self, net: GPT, recipe: Recipe) -> None:
        if recipe.recompute:
            for block in net.blocks:
                block.recompute()
        net.set_train(True)
        self.net = precision.mixed_precision(net, recipe.amp_level)
        self.scaler = optimizers.loss_scaler(recipe.amp_level)
        self.optimizer = optimizers.adam(net, recipe.learning_rate, recipe.beta1, recipe.beta2)
        update = optimizers.Update(self.optimizer, recipe.clip_norm, recipe.weight_decay, is_decayed,
                                   recipe.distributed, self.scaler)
        forward_net, scaler, per_masked_token = self.net, self.scaler, recipe.dynamic_weight
        over_ranks = optimizers.MeanOverRanks(recipe.distributed)

        def forward(tokens: ms.Tensor, masks: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor, ms.Tensor]:
            logits = ops.cast(forward_net(tokens, masks), ms.float32)  # (B, T, V)
            total, parts = masked_cross_entropy(logits, tokens, masks, per_masked_token, over_ranks)
            return optimizers.scaled(scaler, total), total, parts['nll']

        # Gradient boundary: everything inside ``forward`` is differentiated, with respect to the GPT alone.
        gradients_of = ms.value_and_grad(forward, None, self.optimizer.parameters, has_aux=True)

        @ms.jit
        def step(tokens: ms.Tensor, masks: ms.Tensor, rate: ms.Tensor) -> tuple[ms.Tensor, ...]:
            (_, loss, nll), gradients = gradients_of(tokens, masks)
            norm = update(gradients, rate)
            return loss, nll, norm

        @ms.jit
        def logits(tokens: ms.Tensor, masks: ms.Tensor) -> ms.Tensor:
            return net(tokens, masks)

        self.step, self.logits = step, logits

    def __call__(self, tokens: np.ndarray, masks: np.ndarray, rate: float) -> dict[str, float]:
        """tokens (B, T) int32, masks (B, T) float32 -> loss, nll per missing token, norm of the gradients."""
        loss, nll, norm = self.step(ms.Tensor(tokens), ms.Tensor(masks), ms.Tensor(rate, ms.float32))
        return {'loss': float(loss), 'nll': float(nll), 'grad_norm': float(norm)}

    def extra(self) -> dict[str, ms.Parameter]:
        """Further state that a resume needs."""
        return optimizers.scaler_state(self.scaler)


def mean_nll(logits_of: Callable[[ms.Tensor, ms.Tensor], ms.Tensor], tokens: np.ndarray, masks: np.ndarray,
             batch_size: int) -> float:
    """Mean cross entropy per missing token over a set: tokens (N, T) int32, masks (N, T) float32.

    ``logits_of`` is ``TrainStep.logits``: under msrun a cell that is called by itself would bring back the weights of
    its first call (MindSpore 2.8), a compiled function does not.
    """
    total = 0.0
    for start in range(0, len(tokens), batch_size):
        part = np.arange(start, start + batch_size) % len(tokens)  # the last batch is filled up and cut
        logits = logits_of(ms.Tensor(tokens[part]), ms.Tensor(masks[part])).asnumpy().astype(np.float64)  # (B, T, V)
        logits -= logits.max(-1, keepdims=True)
        nll = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, tokens[part, :, None], -1)[..., 0]
        total += float((nll * masks[part])[:len(tokens) - start].sum())
    return total / max(1.0, float(masks.sum()))
