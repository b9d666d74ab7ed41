"""One optimizer step of stage 1, and its validation loss."""
from __future__ import annotations

import argparse
from dataclasses import dataclass, field

import mindspore as ms
import numpy as np
from mindspore import amp, ops

from ict import options
from ict.training import losses, optimizers
from Transformer.models import config, loss
from Transformer.models.networks import GPT


def is_decayed(name: str) -> bool:
    """Weight decay is for matrices only: not for biases, norms and embeddings."""
    return name.endswith('.weight')


@dataclass(frozen=True)
class TrainConfig:
    """What a step does: the options of the same names, and the weight of each loss."""

    learning_rate: float = 3e-4
    beta1: float = 0.9
    beta2: float = 0.95
    clip_norm: float = 0.0
    weight_decay: float = 0.0
    dynamic_weight: bool = False
    amp_level: str = 'O0'
    recompute: bool = False
    distributed: bool = False
    loss_weights: dict[str, float] = field(default_factory=lambda: losses.weights_of(config.LOSSES))

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> TrainConfig:
        """From the options of train.py."""
        return options.chosen(cls, args, loss_weights=losses.weights_of(config.LOSSES, args))


class TrainStep:
    """Forward, backward, reduction over ranks, clipping, decoupled decay and Adam as one compiled function."""

    def __init__(self, net: GPT, train_config: TrainConfig) -> None:
        if train_config.recompute:
            for block in net.blocks:
                block.recompute()
        net.set_train(True)
        forward_net = amp.auto_mixed_precision(net, train_config.amp_level)
        scaler = optimizers.loss_scaler(train_config.amp_level)
        self.optimizer = optimizers.adam(net, train_config.learning_rate, train_config.beta1, train_config.beta2)
        self.columns = ('loss', *train_config.loss_weights, 'grad_norm')
        update = optimizers.Update(self.optimizer, train_config.clip_norm, train_config.weight_decay, is_decayed,
                                   train_config.distributed, scaler)
        loss_of = loss.masked_loss(
            [(getattr(loss, name), weight) for name, weight in train_config.loss_weights.items()],
            train_config.dynamic_weight, optimizers.MeanOverRanks(train_config.distributed))

        def forward(tokens: ms.Tensor, masks: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor, tuple[ms.Tensor, ...]]:
            logits = ops.cast(forward_net(tokens, masks), ms.float32)  # (B, T, V)
            total, parts = loss_of(logits, tokens, masks)
            return optimizers.scaled(scaler, total), total, parts

        # Gradient boundary: everything inside ``forward`` is differentiated, with respect to the GPT alone.
        gradients_of = ms.value_and_grad(forward, None, self.optimizer.parameters, has_aux=True)

        @ms.jit
        def step(tokens: ms.Tensor, masks: ms.Tensor, rate: ms.Tensor) -> tuple[ms.Tensor, ...]:
            (_, total, parts), gradients = gradients_of(tokens, masks)
            norm = update(gradients, rate)
            return total, *parts, norm

        @ms.jit
        def logits(tokens: ms.Tensor, masks: ms.Tensor) -> ms.Tensor:
            return net(tokens, masks)

        self.step, self.logits = step, logits
        self.extra = optimizers.scaler_state(scaler)  # further state that a resume needs

    def __call__(self, tokens: np.ndarray, masks: np.ndarray, rate: float) -> dict[str, float]:
        """tokens (B, T) int32, masks (B, T) float32 -> loss, its parts per missing token, norm of the gradients."""
        values = self.step(ms.Tensor(tokens), ms.Tensor(masks), ms.Tensor(rate, ms.float32))
        return dict(zip(self.columns, map(float, values), strict=True))

    def mean_nll(self, tokens: np.ndarray, masks: np.ndarray, batch_size: int) -> float:
        """Mean cross entropy per missing token over a set: tokens (N, T) int32, masks (N, T) float32.

        The forward pass is a compiled function: under msrun a cell that is called by itself would bring back the
        weights of its first call (MindSpore 2.8).
        """
        total = 0.0
        for start in range(0, len(tokens), batch_size):
            part = np.arange(start, start + batch_size) % len(tokens)  # the last batch is filled up and cut
            logits = self.logits(ms.Tensor(tokens[part]), ms.Tensor(masks[part])).asnumpy()  # (B, T, V)
            logits = logits.astype(np.float64)
            logits -= logits.max(-1, keepdims=True)
            nll = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, tokens[part, :, None], -1)[..., 0]
            total += float((nll * masks[part])[:len(tokens) - start].sum())
        return total / max(1.0, float(masks.sum()))
