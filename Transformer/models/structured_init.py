"""A start for training from which a hole is already filled with the colours around it (``--init structured``)."""
from __future__ import annotations

import math

import mindspore as ms
import numpy as np

from Transformer.models.networks import GPT


def start_structured(net: GPT, codebook: np.ndarray, prior_size: int, rng: np.random.Generator) -> None:
    """Set weights with which attention carries the colours of known neighbours into a hole.

    The first half of the width tells a token's position, the second its colour, whose first channel tells that the
    token is known. MLPs, norms and the remaining biases keep their published start.

    The constants in this module were found by a random search for the lowest loss before any training: 32 x 32
    tokens, 6 layers of 2 heads, width 192.

    Args:
        net: at least 8 wide, its heads at least 2.
        codebook: (V, 3) float32 colours in [-1, 1].
    """
    n_embd = net.pos_emb.shape[-1]
    _set(net.pos_emb, 0.24 * _position_table(prior_size, n_embd).reshape(1, -1, n_embd))
    colour = _colour_table(codebook, n_embd, rng)  # (V, C)
    _set(net.head.weight, 0.26 * colour)
    colour *= 0.3
    colour[:, n_embd // 2] = 1.6  # known
    _set(net.tok_emb.embedding_table, colour)
    for number, block in enumerate(net.blocks):
        attn = block.attn
        query, query_bias, key, value, proj = _attention(n_embd, attn.n_head, number / max(1, len(net.blocks) - 1), rng)
        for layer, weight in ((attn.query, query), (attn.key, key), (attn.value, value), (attn.proj, proj)):
            _set(layer.weight, weight)
        _set(attn.query.bias, query_bias)


def _position_table(prior_size: int, n_embd: int) -> np.ndarray:
    """2-D sines and cosines of ``n_embd // 8`` frequencies in the first channels: (prior_size, prior_size, C)."""
    n_frequencies = n_embd // 8
    frequency = 0.7 * np.pi * 0.5 ** np.linspace(0.0, 1.44 * np.log2(prior_size), n_frequencies)
    angle = np.arange(prior_size)[:, None] * frequency  # (S, F)
    wave = np.concatenate([np.sin(angle), np.cos(angle)], 1)  # (S, 2 F)
    table = np.zeros((prior_size, prior_size, n_embd))
    table[..., :2 * n_frequencies] = wave[:, None]
    table[..., 2 * n_frequencies:4 * n_frequencies] = wave[None]
    return table


def _colour_table(codebook: np.ndarray, n_embd: int, rng: np.random.Generator) -> np.ndarray:
    """Random Fourier features of the colours in the second half of the channels but its first: (V, C)."""
    half = n_embd // 2
    n_directions = (n_embd - half - 1) // 2
    direction = rng.standard_normal((3, n_directions)) * 2.1 * np.pi
    phase = codebook.astype(np.float64) @ direction  # (V, N)
    table = np.zeros((len(codebook), n_embd))
    table[:, half + 1:half + 1 + 2 * n_directions] = np.concatenate([np.sin(phase), np.cos(phase)], 1)
    return table


def _attention(n_embd: int, n_head: int, depth: float, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Weight and bias of the query, weights of key, value and projection, for a block at ``depth`` in [0, 1].

    Queries and keys compare positions, keys of known tokens are preferred; values and projection carry colours over.
    """
    head_dim, half, n_waves = n_embd // n_head, n_embd // 2, 4 * (n_embd // 8)
    query, key, value, proj = 0.005 * rng.standard_normal((4, n_embd, n_embd))
    query_bias = np.zeros(n_embd)
    for head in range(n_head):
        rows = slice(head * head_dim, (head + 1) * head_dim)
        last = rows.stop - 1
        nearness = 34.0 - 14.0 * head / max(1, n_head - 1)  # score of a position with itself
        look = _isometry(rng, head_dim - 1, n_waves)
        look *= math.sqrt(nearness * math.sqrt(head_dim) / n_waves) * math.exp(0.15 * depth)
        query[rows.start:last, :n_waves] += look
        key[rows.start:last, :n_waves] += look
        query_bias[last] = 1.0
        key[last, half] += 6.1 * math.sqrt(head_dim) * math.exp(-2.9 * depth)
        carry = _isometry(rng, head_dim, n_embd - half)
        value[rows, half:] += carry
        proj[half:, rows] += 3.5 * math.exp(-1.5 * depth) / n_head * carry.T
    return query, query_bias, key, value, proj


def _isometry(rng: np.random.Generator, n_out: int, n_in: int) -> np.ndarray:
    """A random matrix (n_out, n_in) that keeps scalar products: exactly, or on average when n_out is the smaller."""
    columns = np.linalg.qr(rng.standard_normal((max(n_out, n_in), min(n_out, n_in))))[0]
    return columns if n_out >= n_in else columns.T * math.sqrt(n_in / n_out)


def _set(parameter: ms.Parameter, values: np.ndarray) -> None:
    parameter.set_data(ms.Tensor(values.astype(np.float32)))
