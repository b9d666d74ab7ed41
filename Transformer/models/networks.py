"""The appearance-prior transformer: a bidirectional GPT over palette tokens (paper, section 3.1).

Parameter names and shapes are those of the published MindSpore checkpoints.
"""
from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from ict.initializers import Normal

LAYER_NORM_EPSILON = 1e-5
INITIAL_SIGMA = 0.02


def _dense(n_in: int, n_out: int, rng: np.random.Generator, has_bias: bool = True) -> nn.Dense:
    return nn.Dense(n_in, n_out, weight_init=Normal(rng, INITIAL_SIGMA), bias_init='zeros', has_bias=has_bias)


class GELU2(nn.Cell):
    """``x * sigmoid(1.702 x)``, the activation of the published models (``--GELU_2``)."""

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return x * ops.sigmoid(1.702 * x)


class Attention(nn.Cell):
    """``softmax(q k^T) v``, with a gradient of its own.

    The gradient of a row P of the softmax is ``P * (dP - D)`` with ``D = sum(dO * O)`` (Dao et al., FlashAttention,
    2022, appendix B.2); here the subtraction rides along in the matrix product that gives dP. On a CPU MindSpore's own
    gradient of a softmax takes six times as long as the softmax.
    """

    def __init__(self) -> None:
        super().__init__()
        self.softmax = ops.Softmax(axis=-1)
        self.product = ops.BatchMatMul()
        self.product_t = ops.BatchMatMul(transpose_b=True)
        self.t_product = ops.BatchMatMul(transpose_a=True)

    def construct(self, q: ms.Tensor, k: ms.Tensor, v: ms.Tensor) -> ms.Tensor:
        """q (B, H, P, D), k and v (B, H, T, D) -> (B, H, P, D)."""
        return self.product(self.softmax(self.product_t(q, k)), v)

    def bprop(self, q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, out: ms.Tensor,
              dout: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor, ms.Tensor]:
        weights = self.softmax(self.product_t(q, k))  # (B, H, P, T)
        rows = ops.concat((dout, -(dout * out).sum(-1, keepdims=True)), -1)  # (B, H, P, D + 1)
        columns = ops.concat((v, ops.ones_like(v[..., :1])), -1)  # (B, H, T, D + 1)
        scores = weights * self.product_t(rows, columns)  # (B, H, P, T)
        return self.product(scores, k), self.t_product(scores, q), self.t_product(weights, dout)


class SelfAttention(nn.Cell):
    """Plain multi-head softmax attention over all positions, scale ``1 / sqrt(head_dim)``."""

    def __init__(self, n_embd: int, n_head: int, rng: np.random.Generator) -> None:
        super().__init__()
        self.n_head = n_head
        self.head_dim = n_embd // n_head
        self.scale = 1.0 / math.sqrt(self.head_dim)
        self.key = _dense(n_embd, n_embd, rng)
        self.query = _dense(n_embd, n_embd, rng)
        self.value = _dense(n_embd, n_embd, rng)
        self.proj = _dense(n_embd, n_embd, rng)
        self.core = Attention()

    def split(self, x: ms.Tensor) -> ms.Tensor:
        b, t, _ = x.shape
        return x.reshape(b, t, self.n_head, self.head_dim).transpose(0, 2, 1, 3)  # (B, H, T, D)

    def construct(self, x: ms.Tensor, reader: ms.Tensor) -> ms.Tensor:
        """``x`` (B, T, C) is attended to by ``reader`` (B, P, C), the same tensor or some rows of it."""
        return self.attend(reader, self.split(self.key(x)), self.split(self.value(x)))

    def attend(self, reader: ms.Tensor, k: ms.Tensor, v: ms.Tensor) -> ms.Tensor:
        """reader (B, P, C), keys and values (B, H, T, D) -> (B, P, C)."""
        b, p, c = reader.shape
        q = self.split(self.query(reader) * self.scale)  # (B, H, P, D)
        y = self.core(q, k, v).transpose(0, 2, 1, 3).reshape(b, p, c)  # (B, P, C)
        return self.proj(y)


class Block(nn.Cell):
    """Pre-norm transformer block; only the rows ``reader`` of the sequence go on when they are fewer."""

    def __init__(self, n_embd: int, n_head: int, activation: nn.Cell, rng: np.random.Generator) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm((n_embd,), epsilon=LAYER_NORM_EPSILON)
        self.ln2 = nn.LayerNorm((n_embd,), epsilon=LAYER_NORM_EPSILON)
        self.attn = SelfAttention(n_embd, n_head, rng)
        self.mlp = nn.SequentialCell(_dense(n_embd, 4 * n_embd, rng), activation,
                                     _dense(4 * n_embd, n_embd, rng))

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        y = self.ln1(x)
        x = x + self.attn(y, y)  # (B, T, C)
        return x + self.mlp(self.ln2(x))

    def read(self, x: ms.Tensor, rows: ms.Tensor) -> ms.Tensor:
        """The same for some rows only: x (B, T, C), flat row numbers (B * P,) -> (B, P, C)."""
        b, _, c = x.shape
        y = self.ln1(x)
        picked = ops.gather(x.reshape(-1, c), rows, 0).reshape(b, -1, c)  # (B, P, C)
        reader = ops.gather(y.reshape(-1, c), rows, 0).reshape(b, -1, c)  # (B, P, C)
        picked = picked + self.attn(y, reader)
        return picked + self.mlp(self.ln2(picked))

    def renew(self, x: ms.Tensor, slots: ms.Tensor, keys: ms.Parameter, values: ms.Parameter,
              n_read: int) -> ms.Tensor:
        """The rows ``x`` (B, P, C) of the sequence anew, with kept keys and values for all others.

        Args:
            slots: (B * H * P,) int32, where these rows' keys and values lie.
            keys, values: (B * H * T, D), brought up to date in place.
            n_read: only so many last rows go on.

        Returns:
            (B, n_read, C).
        """
        shape = (x.shape[0], self.attn.n_head, -1, self.attn.head_dim)
        y = self.ln1(x)
        new_keys = self.attn.split(self.attn.key(y)).reshape(-1, self.attn.head_dim)
        new_values = self.attn.split(self.attn.value(y)).reshape(-1, self.attn.head_dim)
        k = ops.scatter_update(keys, slots, new_keys).reshape(shape)  # (B, H, T, D)
        v = ops.scatter_update(values, slots, new_values).reshape(shape)  # (B, H, T, D)
        x = x[:, -n_read:] + self.attn.attend(y[:, -n_read:], k, v)
        return x + self.mlp(self.ln2(x))


class GPT(nn.Cell):
    """Bidirectional GPT: tokens and mask in, logits over the palette out.

    Args:
        vocab_size: colours of the palette.
        n_embd, n_layer, n_head: width, blocks, attention heads.
        block_size: positions, ``prior_size ** 2``.
        use_gelu2: ``x * sigmoid(1.702 x)`` in the MLP, else GELU.
        gelu: 'tanh' (MindSpore's) or 'erf' (PyTorch's); without effect when ``use_gelu2``.
        rng: where the initial weights come from; weights and embeddings are normal(0, 0.02), biases and
            ``pos_emb`` zero.
    """

    def __init__(self, vocab_size: int, n_embd: int, n_layer: int, n_head: int, block_size: int,
                 use_gelu2: bool = False, *, gelu: str = 'tanh', rng: np.random.Generator | None = None) -> None:
        super().__init__()
        if n_embd % n_head:
            raise ValueError(f'n_embd {n_embd} is not a multiple of n_head {n_head}')
        rng = np.random.default_rng(0) if rng is None else rng
        activation = GELU2() if use_gelu2 else nn.GELU(approximate=gelu == 'tanh')
        self.tok_emb = nn.Embedding(vocab_size, n_embd, embedding_table=Normal(rng, INITIAL_SIGMA))
        self.pos_emb = ms.Parameter(ms.Tensor(np.zeros((1, block_size, n_embd), np.float32)), name='pos_emb')
        self.blocks = nn.CellList([Block(n_embd, n_head, activation, rng) for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm((n_embd,), epsilon=LAYER_NORM_EPSILON)
        self.head = _dense(n_embd, vocab_size, rng, has_bias=False)
        self.n_layer = n_layer

    def embed(self, idx: ms.Tensor, masks: ms.Tensor) -> ms.Tensor:
        tokens = self.tok_emb(idx) * (1.0 - masks.expand_dims(-1))  # (B, T, C)
        return tokens + self.pos_emb

    def construct(self, idx: ms.Tensor, masks: ms.Tensor) -> ms.Tensor:
        """idx (B, T) int32 tokens, masks (B, T) float32 with 1 = missing -> logits (B, T, vocab_size) float32."""
        x = self.embed(idx, masks)
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))  # (B, T, V)

    def logits_at(self, idx: ms.Tensor, masks: ms.Tensor, rows: ms.Tensor) -> ms.Tensor:
        """``construct`` at some positions only: flat row numbers (B * P,) int32 -> logits (B, P, vocab_size).

        The last block's query, projection and MLP, the last norm and the head run for these rows alone.
        """
        x = self.embed(idx, masks)
        for i in range(self.n_layer - 1):
            x = self.blocks[i](x)
        return self.head(self.ln_f(self.blocks[self.n_layer - 1].read(x, rows)))  # (B, P, V)

    def logits_after(self, idx: ms.Tensor, masks: ms.Tensor, where: ms.Tensor, slots: ms.Tensor,
                     keys: ms.ParameterTuple, values: ms.ParameterTuple, n_read: int) -> ms.Tensor:
        """``construct`` for some rows of the sequence, which see kept keys and values of all others.

        Args:
            idx, masks: (B, P) int32 and float32, tokens and mask of these rows.
            where: (B, P) int32, their positions.
            slots, keys, values: as in ``Block.renew``, for each block.

        Returns:
            Logits at the last ``n_read`` rows, (B, n_read, V) float32.
        """
        x = self.tok_emb(idx) * (1.0 - masks.expand_dims(-1)) + ops.gather(self.pos_emb[0], where, 0)  # (B, P, C)
        last = self.n_layer - 1
        for i in range(last):
            x = self.blocks[i].renew(x, slots, keys[i], values[i], idx.shape[1])
        return self.head(self.ln_f(self.blocks[last].renew(x, slots, keys[last], values[last], n_read)))


def start_structured(net: GPT, colours: np.ndarray, prior_size: int, rng: np.random.Generator) -> None:
    """Start as a network that already fills a hole with the colours around it (``--init structured``).

    The first half of the width says where a token is, the second which colour it has, its first channel that it is
    known at all. ``pos_emb`` becomes a 2-D sine-cosine table, ``tok_emb`` and ``head`` random Fourier features of
    the palette's colours. Queries and keys compare positions, and keys of known tokens are preferred, so that
    attention looks at the known neighbours; values and projection carry their colours over. MLPs, norms and the
    remaining biases keep their published start.

    The constants below were found by a random search for the lowest loss before any training: 32x32 tokens, 6
    layers of 2 heads, 192 wide.

    Args:
        net: 8 wide or more, its heads 2 or more.
        colours: palette (V, 3) float32 in [-1, 1].
    """
    n_embd, n_head, n_layer = net.pos_emb.shape[-1], net.blocks[0].attn.n_head, net.n_layer
    head_dim = n_embd // n_head
    half, n_frequencies = n_embd // 2, n_embd // 8
    frequency = 0.7 * np.pi * 0.5 ** np.linspace(0.0, 1.44 * np.log2(prior_size), n_frequencies)
    place = np.arange(prior_size)[:, None] * frequency  # (P, F)
    wave = np.concatenate([np.sin(place), np.cos(place)], 1)  # (P, 2 F)
    table = np.zeros((prior_size, prior_size, n_embd))
    table[..., :2 * n_frequencies] = wave[:, None]
    table[..., 2 * n_frequencies:4 * n_frequencies] = wave[None]
    _set(net.pos_emb, 0.24 * table.reshape(1, -1, n_embd))

    n_directions = (n_embd - half - 1) // 2
    direction = rng.standard_normal((3, n_directions)) * 2.1 * np.pi
    phase = colours.astype(np.float64) @ direction  # (V, N)
    feature = np.zeros((len(colours), n_embd))
    feature[:, half + 1:half + 1 + 2 * n_directions] = np.concatenate([np.sin(phase), np.cos(phase)], 1)
    _set(net.head.weight, 0.26 * feature)
    feature *= 0.3
    feature[:, half] = 1.6  # known
    _set(net.tok_emb.embedding_table, feature)

    for number, block in enumerate(net.blocks):
        depth = number / max(1, n_layer - 1)
        query, key, value, proj = 0.005 * rng.standard_normal((4, n_embd, n_embd))
        query_bias = np.zeros(n_embd)
        for head in range(n_head):
            rows = slice(head * head_dim, (head + 1) * head_dim)
            last = (head + 1) * head_dim - 1
            nearness = 34.0 - 14.0 * head / max(1, n_head - 1)  # score of a position with itself
            look = _isometry(rng, head_dim - 1, 4 * n_frequencies)
            look *= math.sqrt(nearness * math.sqrt(head_dim) / (4 * n_frequencies)) * math.exp(0.15 * depth)
            query[rows.start:last, :4 * n_frequencies] += look
            key[rows.start:last, :4 * n_frequencies] += look
            query_bias[last] = 1.0
            key[last, half] += 6.1 * math.sqrt(head_dim) * math.exp(-2.9 * depth)
            carry = _isometry(rng, head_dim, n_embd - half)
            value[rows, half:] += carry
            proj[half:, rows] += 3.5 * math.exp(-1.5 * depth) / n_head * carry.T
        attn = block.attn
        for layer, weight in ((attn.query, query), (attn.key, key), (attn.value, value), (attn.proj, proj)):
            _set(layer.weight, weight)
        _set(attn.query.bias, query_bias)


def _set(parameter: ms.Parameter, values: np.ndarray) -> None:
    parameter.set_data(ms.Tensor(values.astype(np.float32)))


def _isometry(rng: np.random.Generator, n_out: int, n_in: int) -> np.ndarray:
    """A random matrix (n_out, n_in) that keeps scalar products: exactly, or on average when n_out is the smaller."""
    columns = np.linalg.qr(rng.standard_normal((max(n_out, n_in), min(n_out, n_in))))[0]
    return columns if n_out >= n_in else columns.T * math.sqrt(n_in / n_out)
