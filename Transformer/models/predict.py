"""A trained transformer as a plain function of NumPy arrays."""
from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import nn

from ict import checkpoint
from ict.device import precision
from Transformer.models.config import Architecture
from Transformer.models.networks import GPT


class _LogitsAt(nn.Cell):
    """``GPT.logits_at`` as a cell, so that it is compiled."""

    def __init__(self, net: GPT) -> None:
        super().__init__(auto_prefix=False)
        self.net = net

    def construct(self, idx: ms.Tensor, masks: ms.Tensor, rows: ms.Tensor) -> ms.Tensor:
        return self.net.logits_at(idx, masks, rows)


class _LogitsAfter(nn.Cell):
    """``GPT.logits_after`` with its keys and values, as a cell for one number of rows read."""

    def __init__(self, net: GPT, keys: ms.ParameterTuple, values: ms.ParameterTuple, n_read: int) -> None:
        super().__init__(auto_prefix=False)
        self.net, self.keys, self.values, self.n_read = net, keys, values, n_read

    def construct(self, idx: ms.Tensor, masks: ms.Tensor, where: ms.Tensor, slots: ms.Tensor) -> ms.Tensor:
        return self.net.logits_after(idx, masks, where, slots, self.keys, self.values, self.n_read)


def load(found: checkpoint.Checkpoint, shape: Architecture) -> GPT:
    """The network with a checkpoint's weights; they are in memory once.

    Raises:
        UserError: a tensor is missing, left over, or of another shape.
    """
    checkpoint.check(found, shape.shapes())
    with nn.utils.no_init_parameters():
        net = GPT(shape.vocab_size, shape.n_embd, shape.n_layer, shape.n_head, shape.prior_size ** 2, shape.GELU_2,
                  gelu=shape.gelu)
    checkpoint.load_into(net, found)
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
        attention = net.blocks[0].attn
        self.n_layer, self.n_head, self.head_dim = net.n_layer, attention.n_head, attention.head_dim
        self.net = precision.mixed_precision(net, amp_level)  # changes ``net`` itself, and may wrap it
        self.plain = net
        self.reader = _LogitsAt(net)
        self.reader.set_train(False)
        self._after: dict[int, nn.Cell] = {}

    @classmethod
    def from_checkpoint(cls, ckpt: checkpoint.Checkpoint, config: Architecture, batch_size: int, reuse: str,
                        amp_level: str) -> Predictor:
        return cls(load(ckpt, config), batch_size, config.prior_size ** 2, amp_level)

    @property
    def logits_at(self) -> Predictor:
        return self

    def __call__(self, tokens: np.ndarray, masks: np.ndarray, where: np.ndarray) -> np.ndarray:
        """tokens (B, T) int32, masks (B, T) float32, where (B, P) int32 -> logits (B, P, V) float32.

        P must be the same in every call.
        """
        parts = [self._forward(tokens[i:i + self.rows], masks[i:i + self.rows], where[i:i + self.rows])
                 for i in range(0, len(tokens), self.rows)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _forward(self, tokens: np.ndarray, masks: np.ndarray, where: np.ndarray) -> np.ndarray:
        count = len(tokens)
        fill = np.arange(self.rows) % count
        idx, hole, where = ms.Tensor(tokens[fill]), ms.Tensor(masks[fill]), where[fill]
        if where.shape[1] == self.positions and (where == np.arange(self.positions)).all():
            logits = self.net(idx, hole)  # (rows, T, V)
        else:
            flat = (where + self.positions * np.arange(self.rows, dtype=np.int32)[:, None]).reshape(-1)
            logits = self.reader(idx, hole, ms.Tensor(flat.astype(np.int32)))  # (rows, P, V)
        return logits.asnumpy()[:count].astype(np.float32, copy=False)

    def after(self, tokens: np.ndarray, masks: np.ndarray, where: np.ndarray, n_read: int) -> np.ndarray:
        """Logits at the last ``n_read`` of the rows ``where``, which alone are computed.

        They see keys and values of all other rows as the last call that named them left these; a call that names all
        T rows is exact. At most ``rows`` pictures, the same ones from call to call. For ``amp_level`` O0.

        Args:
            tokens, masks: (B, T) int32 and float32.
            where: (B, P) int32, different positions in each row of it.

        Returns:
            (B, n_read, V) float32.
        """
        count = len(tokens)
        fill = np.arange(self.rows) % count
        where = where[fill]  # (rows, P)
        idx, hole = (np.take_along_axis(part[fill], where, 1) for part in (tokens, masks))
        heads = self.n_head * np.arange(self.rows)[:, None] + np.arange(self.n_head)  # (rows, H)
        slots = self.positions * heads[..., None] + where[:, None]  # (rows, H, P)
        logits = self._reader_after(n_read)(ms.Tensor(idx), ms.Tensor(hole), ms.Tensor(where),
                                            ms.Tensor(slots.reshape(-1).astype(np.int32)))
        return logits.asnumpy()[:count].astype(np.float32, copy=False)

    def _reader_after(self, n_read: int) -> nn.Cell:
        if n_read not in self._after:
            if not self._after:
                self._kept = [ms.ParameterTuple([
                    ms.Parameter(ms.Tensor(np.zeros((self.rows * self.n_head * self.positions, self.head_dim),
                                                    np.float32)), name=f'{kind}.{i}', requires_grad=False)
                    for i in range(self.n_layer)]) for kind in ('keys', 'values')]
            cell = _LogitsAfter(self.plain, *self._kept, n_read)
            cell.set_train(False)
            self._after[n_read] = cell
        return self._after[n_read]
