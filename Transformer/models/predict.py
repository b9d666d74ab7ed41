"""A trained transformer as a plain function of NumPy arrays."""
from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import nn

from ict import checkpoint as checkpoints
from ict import optimizers
from Transformer.models.architecture import Architecture
from Transformer.models.networks import GPT


class _LogitsAt(nn.Cell):
    """``GPT.logits_at`` as a cell, so that it is compiled."""

    def __init__(self, net: GPT) -> None:
        super().__init__(auto_prefix=False)
        self.net = net

    def construct(self, idx: ms.Tensor, masks: ms.Tensor, rows: ms.Tensor) -> ms.Tensor:
        return self.net.logits_at(idx, masks, rows)


def load(found: checkpoints.Checkpoint, shape: Architecture) -> GPT:
    """The network with a checkpoint's weights; they are in memory once.

    Raises:
        UserError: a tensor is missing, left over, or of another shape.
    """
    checkpoints.check(found, shape.shapes())
    with nn.utils.no_init_parameters():
        net = GPT(shape.vocab_size, shape.n_embd, shape.n_layer, shape.n_head, shape.prior_size ** 2, shape.GELU_2,
                  gelu=shape.gelu)
    checkpoints.load_into(net, found)
    net.set_train(False)
    return net


class Predictor:
    """tokens, mask, positions -> logits, with one compiled shape whatever the hole and the number of pictures.

    Args:
        rows: pictures in one forward pass. More than one fills a GPU; on a CPU it gains nothing (one picture is
            1024 rows of every matrix product already) and would round differently.
        positions: T.
    """

    def __init__(self, net: GPT, rows: int, positions: int, amp_level: str = 'O0') -> None:
        self.rows, self.positions = rows, positions
        reader = _LogitsAt(net)
        reader.set_train(False)
        self.reader = optimizers.mixed_precision(reader, amp_level)
        self.net = optimizers.mixed_precision(net, amp_level)

    def __call__(self, tokens: np.ndarray, masks: np.ndarray, where: np.ndarray) -> np.ndarray:
        """tokens (B, T) int32, masks (B, T) float32, where (B, P) int32 -> logits (B, P, V) float32.

        P must be the same in every call; P = T means all positions in order.
        """
        parts = [self._forward(tokens[i:i + self.rows], masks[i:i + self.rows], where[i:i + self.rows])
                 for i in range(0, len(tokens), self.rows)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _forward(self, tokens: np.ndarray, masks: np.ndarray, where: np.ndarray) -> np.ndarray:
        count = len(tokens)
        fill = np.arange(self.rows) % count
        idx, hole, where = ms.Tensor(tokens[fill]), ms.Tensor(masks[fill]), where[fill]
        if where.shape[1] == self.positions:
            logits = self.net(idx, hole)  # (rows, T, V)
        else:
            flat = (where + self.positions * np.arange(self.rows, dtype=np.int32)[:, None]).reshape(-1)
            logits = self.reader(idx, hole, ms.Tensor(flat.astype(np.int32)))  # (rows, P, V)
        return logits.asnumpy()[:count].astype(np.float32, copy=False)
