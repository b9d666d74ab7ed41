"""A trained transformer as a plain function of NumPy arrays: logits at some positions of partly filled pictures.

It computes what ``GPT`` does. Three things differ: any rows can be computed with kept keys and values of all others;
what is compiled is a single block that takes its layer's weights as inputs, so that depth costs no compilation; and
gamma and beta of each LayerNorm and the scale of the queries are part of the matrices and biases beside them.
"""
from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import mindspore as ms
import numpy as np
from mindspore import ops

from ict import checkpoint
from Transformer.models.config import LAYER_NORM_EPSILON, GPTConfig

N_TURNS = 4  # sets of positions that are computed in turns, see ``Predictor``
STRIP = 64  # rows that are transposed at a time
# The dense layers of a block, in the order in which it takes their weights, with the LayerNorm before each
DENSE_LAYERS = {'attn.query': 'ln1', 'attn.key': 'ln1', 'attn.value': 'ln1', 'attn.proj': '', 'mlp.0': 'ln2',
                'mlp.2': ''}
KVCache = list[tuple[ms.Tensor, ms.Tensor]]  # keys and values of each layer, (B, H, T, D)


@functools.cache
def compiled(config: GPTConfig) -> tuple[Callable[..., tuple[ms.Tensor, ...]], Callable[..., ms.Tensor]]:
    """One block and what follows the last one, compiled once for each shape of their inputs."""
    n_head, head_dim = config.n_head, config.n_embd // config.n_head
    matmul, bias_add = ops.MatMul(), ops.BiasAdd()  # on a CPU, BiasAdd takes less than half the time of ``+``
    product, product_t = ops.BatchMatMul(), ops.BatchMatMul(transpose_b=True)
    softmax = ops.Softmax(axis=-1)
    averaging = ms.Tensor(np.full((config.n_embd, 1), 1 / config.n_embd, np.float32))  # (C, 1)

    def norm(x: ms.Tensor) -> ms.Tensor:
        """LayerNorm of rows (N, C) without gamma and beta. MindSpore's own runs on one core of a CPU."""
        x = x - matmul(x, averaging)
        return x * ops.rsqrt(matmul(ops.square(x), averaging) + LAYER_NORM_EPSILON)

    def dense(x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
        return bias_add(matmul(ops.cast(x, weight.dtype), weight), bias)

    def activation(x: ms.Tensor) -> ms.Tensor:
        if config.GELU_2:
            return x * ops.sigmoid(1.702 * x)
        return ops.gelu(x, approximate='tanh' if config.gelu == 'tanh' else 'none')

    def split(x: ms.Tensor, batch_size: int) -> ms.Tensor:
        return x.reshape(batch_size, -1, n_head, head_dim).transpose(0, 2, 1, 3)  # (B, H, P, D)

    def merged(kept: ms.Tensor, new: ms.Tensor, source: ms.Tensor) -> ms.Tensor:
        new = split(new, source.shape[0]).reshape(-1, head_dim)
        return ops.gather(ops.concat((kept.reshape(-1, head_dim), new)), source, 0)  # (B, H, T, D)

    @ms.jit
    def block(x: ms.Tensor, source: ms.Tensor, keys: ms.Tensor, values: ms.Tensor,
              *weights: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor, ms.Tensor]:
        """The rows x (B * P, C) after a block, and keys and values (B, H, T, D) of all rows.

        Args:
            source: (B, H, T) int32, which of the kept ``keys`` and ``values`` (..., D) and the new ones behind them.
            weights: matrix (in, out) and bias of each of DENSE_LAYERS.
        """
        (query, query_bias, key, key_bias, value, value_bias, proj, proj_bias, widen, widen_bias, narrow,
         narrow_bias) = weights
        y = norm(x)
        keys = merged(keys, dense(y, key, key_bias), source)  # (B, H, T, D)
        values = merged(values, dense(y, value, value_bias), source)  # (B, H, T, D)
        attention = softmax(product_t(split(dense(y, query, query_bias), source.shape[0]), keys))  # (B, H, P, T)
        y = product(attention, values)  # (B, H, P, D)
        x = x + dense(y.transpose(0, 2, 1, 3).reshape(-1, n_head * head_dim), proj, proj_bias)  # (B * P, C)
        y = activation(dense(norm(x), widen, widen_bias))  # (B * P, 4 C)
        return x + dense(y, narrow, narrow_bias), keys, values

    @ms.jit
    def head(x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
        return ops.cast(dense(norm(x), weight, bias), ms.float32)  # (B * P, V)

    return block, head


def transposed(matrix: np.ndarray) -> np.ndarray:
    """(N, M) -> (M, N), copied in strips: on large matrices four times as fast as in one piece."""
    result = np.empty(matrix.shape[::-1], matrix.dtype)
    for start in range(0, len(matrix), STRIP):
        result[:, start:start + STRIP] = matrix[start:start + STRIP].T
    return result


class GPTRows:
    """The network for any rows of its sequence.

    Args:
        array_of: the weights by their names in a checkpoint, float32.
        half: float16 for matrices and what they are multiplied with; norms and the sums over layers stay float32.
    """

    def __init__(self, array_of: Callable[[str], np.ndarray], config: GPTConfig, half: bool) -> None:
        self.dtype, target = np.float16 if half else np.float32, ms.get_context('device_target')
        scale = np.float32(1.0 / math.sqrt(config.n_embd // config.n_head))

        def prepared(name: str, norm: str, bias: bool) -> tuple[np.ndarray, np.ndarray]:
            """Matrix (in, out) and bias (out,) of a dense layer, with norm and the queries' scale folded in."""
            # A CPU multiplies few rows by a matrix (in, out) in a third of the time that (out, in) takes.
            matrix = transposed(array_of(f'{name}.weight'))
            vector = array_of(f'{name}.bias') if bias else np.zeros(matrix.shape[1], np.float32)
            if norm:
                vector = vector + array_of(f'{norm}.beta') @ matrix
                matrix *= array_of(f'{norm}.gamma')[:, None]
            if name.endswith('attn.query'):
                matrix *= scale
                vector *= scale
            return matrix.astype(self.dtype, copy=False), vector.astype(self.dtype, copy=False)

        def loaded(prefix: str, layers: Mapping[str, str], bias: bool = True) -> list[ms.Tensor]:
            parts = pool.map(lambda name: prepared(prefix + name, prefix + layers[name] if layers[name] else '', bias),
                             layers)
            tensors = map(ms.Tensor.from_numpy, itertools.chain.from_iterable(parts))  # without another copy
            return [tensor if target == 'CPU' else tensor.move_to(target) for tensor in tensors]

        self.n_positions, self.n_head = config.prior_size ** 2, config.n_head
        # The number of rows is rounded up to a multiple of this. Every new number costs 0.1 s of compilation: as long
        # as a few rows of a large network, or many of a small one.
        self.row_multiple = 32 if config.n_layer * config.n_embd ** 2 > 4_000_000 else 128
        self.tok_emb, self.pos_emb = array_of('tok_emb.embedding_table'), array_of('pos_emb')[0]  # (V, C), (T, C)
        with ThreadPoolExecutor(2) as pool:
            self.layers = [loaded(f'blocks.{i}.', DENSE_LAYERS) for i in range(config.n_layer)]
            self.last = loaded('', {'head': 'ln_f'}, bias=False)
        self.block, self.head = compiled(config)

    def __call__(self, tokens: np.ndarray, mask: np.ndarray, rows: list[np.ndarray],
                 kv_cache: KVCache | None) -> tuple[list[np.ndarray], KVCache]:
        """Logits (n, V) float32 at the n different positions that ``rows`` names for each picture, and a new cache.

        Args:
            tokens, mask: (B, T) int32 and bool.
            kv_cache: what the last call returned, used up; None when ``rows`` names all positions.
        """
        # Copies of rows that are computed anyway make their numbers equal; what comes of the copies is ignored.
        most = max(1, *map(len, rows))
        n_rows = min(-(-most // self.row_multiple) * self.row_multiple, self.n_positions)
        padded = np.stack([np.resize(own, n_rows) for own in rows])  # (B, P)
        known = ~np.take_along_axis(mask, padded, 1)[..., None]
        x = self.tok_emb[np.take_along_axis(tokens, padded, 1)] * known + self.pos_emb[padded]  # (B, P, C)

        # Where each position's keys and values are: among the kept ones, or behind them among the new ones
        shape = len(tokens), self.n_head, self.n_positions  # (B, H, T)
        source = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
        n_kept = source.size
        if kv_cache is None:
            nothing, n_kept = ms.Tensor(np.zeros((1, x.shape[-1] // self.n_head), self.dtype)), 1
            kv_cache = [(nothing, nothing)] * len(self.layers)
        new = n_kept + np.arange(math.prod(shape[:2]) * n_rows, dtype=np.int32).reshape(*shape[:2], n_rows)
        for b, own in enumerate(rows):
            source[b][:, own] = new[b, :, :len(own)]

        x, source, new_cache = ms.Tensor(x.reshape(-1, x.shape[-1])), ms.Tensor(source), []
        for weights in self.layers:
            x, keys, values = self.block(x, source, *kv_cache.pop(0), *weights)  # (B * P, C), (B, H, T, D) twice
            new_cache.append((keys, values))
        logits = self.head(x, *self.last).asnumpy().reshape(len(rows), n_rows, -1)
        return [values[:len(own)] for values, own in zip(logits, rows, strict=True)], new_cache


@dataclass(frozen=True)
class State:
    """What a call has computed.

    Attributes:
        tokens: (B, T) int32, 0 where missing.
        mask: (B, T) bool, True = missing.
        logits: (B, T, V) float32, of each row as it was computed last.
        kv_cache: keys and values; empty when they are not reused.
        n_continued: how many calls have continued the one that computed everything.
    """

    tokens: np.ndarray
    mask: np.ndarray
    logits: np.ndarray
    kv_cache: KVCache
    n_continued: int

    def is_of(self, tokens: np.ndarray, mask: np.ndarray) -> bool:
        return np.array_equal(tokens, self.tokens) and np.array_equal(mask, self.mask)

    def is_continued_by(self, tokens: np.ndarray, mask: np.ndarray) -> bool:
        """Whether known tokens are still the same, and only missing ones have been filled."""
        return (tokens.shape == self.tokens.shape and not (mask & ~self.mask).any()
                and bool((self.mask | (tokens == self.tokens)).all()))


class Predictor:
    """The model that a ``Sampler`` needs.

    What is computed depends on ``reuse``:
        'none': every call computes all positions, as published.
        'hole': while the same pictures are filled, a call computes the positions that are read, those filled since the
            last call, and in turns the missing ones of one of four sets of positions, of two sets in each of the first
            four calls; keys and values of all others are kept from the calls that computed them.

    A call that doesn't continue the last one, or reads all positions, computes everything. What it computed is kept:
    the next sample of the same pictures begins with it. So the logits of a sample whose first call reads all positions
    don't depend on earlier samples.

    Args:
        array_of: the weights by their names in a checkpoint, float32.
        reuse: 'none' or 'hole'.
        batch_size: pictures in one forward pass. More than one fills a GPU; on a CPU it would round differently.
        amp_level: O0 float32; O2, O3 float16 but for norms.
    """

    def __init__(self, array_of: Callable[[str], np.ndarray], config: GPTConfig, batch_size: int, reuse: str,
                 amp_level: str = 'O0') -> None:
        self.network = GPTRows(array_of, config, amp_level != 'O0')
        self.batch_size, self.reuse = batch_size, reuse
        row, column = np.divmod(np.arange(config.prior_size ** 2), config.prior_size)
        self.turn_of = (2 * row + column) % N_TURNS  # (T,): neighbours belong to different sets
        self._first: dict[int, State] = {}  # of each batch of a call: what its pictures began with
        self._last: dict[int, State] = {}  # and what was computed last

    @classmethod
    def from_checkpoint(cls, ckpt: checkpoint.Checkpoint, config: GPTConfig, batch_size: int, reuse: str,
                        amp_level: str = 'O0') -> Predictor:
        """A checkpoint's weights; they are in memory once.

        Raises:
            UserError: a tensor is missing, left over, or of another shape.
        """
        checkpoint.check(ckpt, config.shapes())
        return cls(ckpt.array, config, batch_size, reuse, amp_level)

    def logits_at(self, tokens: np.ndarray, mask: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """tokens (B, T) int32, mask (B, T) bool or 0 and 1, positions (B, P) int -> logits (B, P, V) float32."""
        mask, positions = mask > 0, positions.astype(np.int64)
        tokens = np.where(mask, 0, tokens)
        parts = []
        for number, start in enumerate(range(0, len(tokens), self.batch_size)):
            part = slice(start, start + self.batch_size)
            state = self._state_after(number, tokens[part], mask[part], positions[part])
            parts.append(np.take_along_axis(state.logits, positions[part, :, None], 1))
        return np.concatenate(parts)

    def _state_after(self, number: int, tokens: np.ndarray, mask: np.ndarray, positions: np.ndarray) -> State:
        """What is computed after a call for batch ``number`` that reads ``positions``."""
        first, last = self._first.get(number), self._last.pop(number, None)
        read = np.zeros(mask.shape, bool)
        np.put_along_axis(read, positions, True, 1)
        if first is not None and first.is_of(tokens, mask):
            state = first
        elif last is not None and not read.all() and last.is_continued_by(tokens, mask):
            state = self._computed(tokens, mask, read | self._due(last, mask), last)
        else:
            self._first.pop(number, None)
            del first, last  # their memory is needed
            state = self._first[number] = self._computed(tokens, mask, np.ones_like(mask), None)
        self._last[number] = replace(state, kv_cache=list(state.kv_cache))
        return state

    def _due(self, last: State, mask: np.ndarray) -> np.ndarray:
        """Rows to compute besides those that are read, (B, T) bool."""
        if self.reuse == 'none':
            return np.ones_like(mask)
        n_due = 2 if last.n_continued < 4 else 1  # the first tokens tell the most about the others
        its_turn = (self.turn_of - n_due * last.n_continued) % N_TURNS < n_due
        return np.where(mask, its_turn, last.mask)  # what is known now and was missing has been filled

    def _computed(self, tokens: np.ndarray, mask: np.ndarray, rows: np.ndarray, last: State | None) -> State:
        """The state after ``rows`` (B, T) bool have been computed; keys and values of ``last`` are used up."""
        numbers = [np.flatnonzero(own) for own in rows]
        kept = None if rows.all() else last
        computed, kv_cache = self.network(tokens, mask, numbers, None if kept is None else kept.kv_cache)
        logits = np.zeros((*mask.shape, computed[0].shape[-1]), np.float32) if kept is None else kept.logits.copy()
        for target, own, values in zip(logits, numbers, computed, strict=True):
            target[own] = values
        return State(tokens, mask, logits, kv_cache if self.reuse != 'none' else [],
                     0 if last is None else last.n_continued + 1)
