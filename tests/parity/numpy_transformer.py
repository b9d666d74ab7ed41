"""The transformer in float64 NumPy, row by row: the reference that float32 is compared with."""
from __future__ import annotations

import math

import numpy as np

from Transformer.models.config import GPTConfig

Cache = list[tuple[np.ndarray, np.ndarray]]


class Reference:
    """``GPT`` for one picture, with keys and values (T, C) of each block kept from call to call."""

    def __init__(self, weights: dict[str, np.ndarray], config: GPTConfig) -> None:
        self.weights = {name: values.astype(np.float64) for name, values in weights.items()}
        self.config = config
        self.kv_cache = [(np.zeros((config.prior_size ** 2, config.n_embd)),) * 2 for _ in range(config.n_layer)]

    def __call__(self, tokens: np.ndarray, mask: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """tokens (T,), mask (T,), different rows (n,) -> logits there (n, V); other rows stay what they were."""
        w = self.weights
        x = w['tok_emb.embedding_table'][tokens[rows]] * (1 - mask[rows, None]) + w['pos_emb'][0, rows]
        for i in range(self.config.n_layer):
            block = f'blocks.{i}.'
            y = self.norm(x, f'{block}ln1')
            kept = [np.array(values) for values in self.kv_cache[i]]
            for values, name in zip(kept, ('key', 'value'), strict=True):
                values[rows] = self.dense(y, f'{block}attn.{name}')
            self.kv_cache[i] = kept[0], kept[1]
            x = x + self.dense(self.attention(self.dense(y, f'{block}attn.query'), *kept), f'{block}attn.proj')
            y = self.dense(self.norm(x, f'{block}ln2'), f'{block}mlp.0')
            x = x + self.dense(self.activation(y), f'{block}mlp.2')
        return self.norm(x, 'ln_f') @ w['head.weight'].T

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred ** 2).mean(-1, keepdims=True) + 1e-5)
        return scaled * self.weights[f'{name}.gamma'] + self.weights[f'{name}.beta']

    def dense(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.weights[f'{name}.weight'].T + self.weights[f'{name}.bias']

    def attention(self, query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
        """query (n, C), key and value (T, C) -> (n, C)."""
        heads = [np.split(x, self.config.n_head, -1) for x in (query, key, value)]
        return np.concatenate([softmax(q @ k.T / math.sqrt(q.shape[-1])) @ v
                               for q, k, v in zip(*heads, strict=True)], -1)

    def activation(self, x: np.ndarray) -> np.ndarray:
        if self.config.GELU_2:
            return x / (1 + np.exp(-1.702 * x))
        if self.config.gelu == 'tanh':
            return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))
        return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def softmax(scores: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)
