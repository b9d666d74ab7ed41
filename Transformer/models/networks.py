"""The appearance-prior transformer: a bidirectional GPT over palette tokens (paper, section 3.1).

Parameter names and shapes are those of the published MindSpore checkpoints.
"""
from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.common.initializer import Initializer

LAYER_NORM_EPSILON = 1e-5


class _Normal(Initializer):
    """Normal(0, sigma) drawn from a NumPy generator, so that a seed fixes every weight."""

    def __init__(self, rng: np.random.Generator, sigma: float) -> None:
        super().__init__()
        self.rng, self.sigma = rng, sigma

    def _initialize(self, arr: np.ndarray) -> None:
        arr[:] = self.rng.standard_normal(arr.shape, dtype=np.float32) * np.float32(self.sigma)


def _dense(n_in: int, n_out: int, rng: np.random.Generator, has_bias: bool = True) -> nn.Dense:
    return nn.Dense(n_in, n_out, weight_init=_Normal(rng, 0.02), bias_init='zeros', has_bias=has_bias)


class GELU2(nn.Cell):
    """``x * sigmoid(1.702 x)``, the activation of the published models (``--GELU_2``)."""

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return x * ops.sigmoid(1.702 * x)


class SelfAttention(nn.Cell):
    """Plain multi-head softmax attention over all positions, scale ``1 / sqrt(head_dim)``."""

    def __init__(self, n_embd: int, n_head: int, attn_pdrop: float, resid_pdrop: float,
                 rng: np.random.Generator) -> None:
        super().__init__()
        self.n_head = n_head
        self.head_dim = n_embd // n_head
        self.scale = 1.0 / math.sqrt(self.head_dim)
        self.key = _dense(n_embd, n_embd, rng)
        self.query = _dense(n_embd, n_embd, rng)
        self.value = _dense(n_embd, n_embd, rng)
        self.proj = _dense(n_embd, n_embd, rng)
        self.attn_drop = nn.Dropout(p=attn_pdrop)
        self.resid_drop = nn.Dropout(p=resid_pdrop)
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()

    def split(self, x: ms.Tensor) -> ms.Tensor:
        b, t, _ = x.shape
        return x.reshape(b, t, self.n_head, self.head_dim).transpose(0, 2, 1, 3)  # (B, H, T, D)

    def construct(self, x: ms.Tensor, reader: ms.Tensor) -> ms.Tensor:
        """``x`` (B, T, C) is attended to by ``reader`` (B, P, C), the same tensor or some rows of it."""
        b, p, c = reader.shape
        q = self.split(self.query(reader) * self.scale)  # (B, H, P, D)
        k = self.split(self.key(x))  # (B, H, T, D)
        v = self.split(self.value(x))  # (B, H, T, D)
        weights = self.attn_drop(ops.softmax(self.scores(q, k), axis=-1))  # (B, H, P, T)
        y = self.mix(weights, v).transpose(0, 2, 1, 3).reshape(b, p, c)  # (B, P, C)
        return self.resid_drop(self.proj(y))


class Block(nn.Cell):
    """Pre-norm transformer block; only the rows ``reader`` of the sequence go on when they are fewer."""

    def __init__(self, n_embd: int, n_head: int, activation: nn.Cell, attn_pdrop: float, resid_pdrop: float,
                 rng: np.random.Generator) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm((n_embd,), epsilon=LAYER_NORM_EPSILON)
        self.ln2 = nn.LayerNorm((n_embd,), epsilon=LAYER_NORM_EPSILON)
        self.attn = SelfAttention(n_embd, n_head, attn_pdrop, resid_pdrop, rng)
        self.mlp = nn.SequentialCell(_dense(n_embd, 4 * n_embd, rng), activation, _dense(4 * n_embd, n_embd, rng),
                                     nn.Dropout(p=resid_pdrop))

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


class GPT(nn.Cell):
    """Bidirectional GPT: tokens and mask in, logits over the palette out.

    Args:
        vocab_size: colours of the palette.
        n_embd, n_layer, n_head: width, blocks, attention heads.
        block_size: positions, ``prior_size ** 2``.
        use_gelu2: ``x * sigmoid(1.702 x)`` in the MLP, else GELU.
        embd_pdrop, resid_pdrop, attn_pdrop: dropout probabilities (0 in the published training).
        gelu: 'tanh' (MindSpore's) or 'erf' (PyTorch's); without effect when ``use_gelu2``.
        rng: where the initial weights come from; weights and embeddings are normal(0, 0.02), biases and
            ``pos_emb`` zero.
    """

    def __init__(self, vocab_size: int, n_embd: int, n_layer: int, n_head: int, block_size: int,
                 use_gelu2: bool = False, embd_pdrop: float = 0.0, resid_pdrop: float = 0.0,
                 attn_pdrop: float = 0.0, *, gelu: str = 'tanh', rng: np.random.Generator | None = None) -> None:
        super().__init__()
        if n_embd % n_head:
            raise ValueError(f'n_embd {n_embd} is not a multiple of n_head {n_head}')
        rng = np.random.default_rng(0) if rng is None else rng
        activation = GELU2() if use_gelu2 else nn.GELU(approximate=gelu == 'tanh')
        self.tok_emb = nn.Embedding(vocab_size, n_embd, embedding_table=_Normal(rng, 0.02))
        self.pos_emb = ms.Parameter(ms.Tensor(np.zeros((1, block_size, n_embd), np.float32)), name='pos_emb')
        self.drop = nn.Dropout(p=embd_pdrop)
        self.blocks = nn.CellList([Block(n_embd, n_head, activation, attn_pdrop, resid_pdrop, rng)
                                   for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm((n_embd,), epsilon=LAYER_NORM_EPSILON)
        self.head = _dense(n_embd, vocab_size, rng, has_bias=False)
        self.n_layer = n_layer

    def embed(self, idx: ms.Tensor, masks: ms.Tensor) -> ms.Tensor:
        tokens = self.tok_emb(idx) * (1.0 - masks.expand_dims(-1))  # (B, T, C)
        return self.drop(tokens + self.pos_emb)

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


def start_structured(net: GPT, colours: np.ndarray, prior_size: int, rng: np.random.Generator) -> None:
    """Give positions and colours a start that already says which are near each other (``--init structured``).

    ``pos_emb`` becomes a 2-D sine-cosine table of amplitude 0.3; ``tok_emb`` and ``head`` become random Fourier
    features of the palette's colours, amplitudes 0.3 and 0.1. The rest keeps its published start.

    Args:
        colours: palette (V, 3) float32 in [-1, 1].
    """
    n_embd = net.pos_emb.shape[-1]
    quarter = n_embd // 4
    frequency = np.pi * 0.5 ** np.linspace(0.0, np.log2(prior_size), quarter)
    place = np.arange(prior_size)[:, None] * frequency  # (P, quarter)
    wave = np.concatenate([np.sin(place), np.cos(place)], 1)  # (P, 2 quarter)
    table = np.zeros((prior_size, prior_size, n_embd), np.float32)
    table[..., :2 * quarter] = wave[:, None]
    table[..., 2 * quarter:4 * quarter] = wave[None]
    net.pos_emb.set_data(ms.Tensor(0.3 * table.reshape(1, -1, n_embd)))
    half = n_embd // 2
    direction = rng.standard_normal((3, half)) * np.pi
    phase = colours.astype(np.float64) @ direction  # (V, half)
    feature = np.zeros((len(colours), n_embd), np.float32)
    feature[:, :2 * half] = np.concatenate([np.sin(phase), np.cos(phase)], 1)
    net.tok_emb.embedding_table.set_data(ms.Tensor(0.3 * feature))
    net.head.weight.set_data(ms.Tensor(0.1 * feature))
