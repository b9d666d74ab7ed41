"""The appearance-prior transformer: a bidirectional GPT over palette tokens (paper, section 3.1).

Parameter names and shapes are those of the published MindSpore checkpoints.
"""
from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from ict.initializers import Normal
from Transformer.models.config import LAYER_NORM_EPSILON

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

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """(B, T, C) -> (B, T, C)."""
        b, t, c = x.shape
        q, k, v = self.split(self.query(x) * self.scale), self.split(self.key(x)), self.split(self.value(x))
        y = self.core(q, k, v).transpose(0, 2, 1, 3).reshape(b, t, c)  # (B, T, C)
        return self.proj(y)


class Block(nn.Cell):
    """Pre-norm transformer block."""

    def __init__(self, n_embd: int, n_head: int, activation: nn.Cell, rng: np.random.Generator) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm((n_embd,), epsilon=LAYER_NORM_EPSILON)
        self.ln2 = nn.LayerNorm((n_embd,), epsilon=LAYER_NORM_EPSILON)
        self.attn = SelfAttention(n_embd, n_head, rng)
        self.mlp = nn.SequentialCell(_dense(n_embd, 4 * n_embd, rng), activation,
                                     _dense(4 * n_embd, n_embd, rng))

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.attn(self.ln1(x))
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

    def construct(self, idx: ms.Tensor, masks: ms.Tensor) -> ms.Tensor:
        """idx (B, T) int32 tokens, masks (B, T) float32 with 1 = missing -> logits (B, T, vocab_size) float32."""
        x = self.tok_emb(idx) * (1.0 - masks.expand_dims(-1)) + self.pos_emb  # (B, T, C)
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))  # (B, T, V)
