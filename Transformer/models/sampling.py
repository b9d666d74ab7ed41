"""Filling the missing tokens of a picture (paper, section 3.1) with any model; NumPy only.

The published sampler fills one token a forward pass, in raster order. With fewer passes each fills several tokens, in
an order that spreads them over the hole (``halton``) or those first of which the model is most confident
(``confidence``, after MaskGIT). The random numbers of a position are drawn from (seed, image, sample) before
anything else, so that a sample doesn't depend on which tokens share a pass, a batch or a process.
"""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

# The model: (tokens (B, T) int32, mask (B, T) bool 1 = missing, positions (B, P) int32) -> logits there (B, P, V)
# float32. P may differ from call to call.
LogitsAt = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class SamplingConfig:
    """How to sample.

    Attributes:
        top_k: only the so many likeliest tokens are drawn.
        temperature: logits are divided by it.
        sample_steps: forward passes a picture; 0 = one for each missing token.
        schedule: which tokens a pass fills: one of ORDERS.
        deterministic: no sampling: the prior is the mean colour that the model expects, from one pass.
    """

    top_k: int = 40
    temperature: float = 1.0
    sample_steps: int = 0
    schedule: str = 'raster'
    deterministic: bool = False


@dataclass(frozen=True)
class Sample:
    """One completed picture.

    Attributes:
        tokens: (T,) int32.
        log_likelihood: sum over the hole of the log probability of each token when it was filled, under the model
            itself (temperature 1, all tokens); 0 for an empty hole.
        expected: with ``deterministic``, the mean colours (T, 3) float64 levels; those of the hole are used.
    """

    tokens: np.ndarray
    log_likelihood: float
    expected: np.ndarray | None = None


def noise_generator(seed: int, image_id: str, sample_number: int) -> np.random.Generator:
    """The random generator of one sample of one picture."""
    digest = hashlib.sha256(f'{seed}/{sample_number}/{image_id}'.encode('utf-8', 'surrogateescape')).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))


class Order:
    """Which of the missing tokens a pass fills: those of the highest priority.

    A new order is a subclass and an entry in ``ORDERS``.
    """

    needs_log_prob = False  # whether a pass draws a token for every missing position before some of them are kept

    def __init__(self, prior_size: int, config: SamplingConfig) -> None:
        self.prior_size, self.config = prior_size, config

    def priority(self, positions: np.ndarray, log_probs: np.ndarray | None, gumbel: np.ndarray,
                 remaining: float) -> np.ndarray:
        """(n,) float or int, for the n missing positions of a picture.

        Args:
            positions: (n,) int64, ascending.
            log_probs: (n,) float64 of the tokens drawn there; None unless ``needs_log_prob``.
            gumbel: (n,) float64, the noise of these positions.
            remaining: share of the passes that follow this one.
        """
        raise NotImplementedError


class Raster(Order):
    """Row by row, as published."""

    def priority(self, positions: np.ndarray, log_probs: np.ndarray | None, gumbel: np.ndarray,
                 remaining: float) -> np.ndarray:
        return -positions


class Halton(Order):
    """Spread over the whole hole, by the 2-D Halton sequence."""

    def __init__(self, prior_size: int, config: SamplingConfig) -> None:
        super().__init__(prior_size, config)
        self.rank = np.argsort(halton_order(prior_size))  # (T,)

    def priority(self, positions: np.ndarray, log_probs: np.ndarray | None, gumbel: np.ndarray,
                 remaining: float) -> np.ndarray:
        return -self.rank[positions]


class Confidence(Order):
    """The likeliest of the drawn tokens first, with less and less noise (Chang et al., MaskGIT, 2022)."""

    needs_log_prob = True

    def priority(self, positions: np.ndarray, log_probs: np.ndarray | None, gumbel: np.ndarray,
                 remaining: float) -> np.ndarray:
        assert log_probs is not None  # as ``needs_log_prob`` asks for
        return log_probs + self.config.temperature * remaining * gumbel


ORDERS: dict[str, type[Order]] = {'raster': Raster, 'halton': Halton, 'confidence': Confidence}


def halton_order(prior_size: int) -> np.ndarray:
    """All positions of the grid in the order of the 2-D Halton sequence (bases 2 and 3): (T,) int64."""
    n_points = 4 * prior_size ** 2
    while True:
        rows, columns = ((_radical_inverse(np.arange(1, n_points + 1), base) * prior_size).astype(np.int64)
                         for base in (2, 3))
        cells = rows * prior_size + columns
        first = np.unique(cells, return_index=True)[1]
        if len(first) == prior_size ** 2:
            return cells[np.sort(first)]
        n_points *= 2


def _radical_inverse(index: np.ndarray, base: int) -> np.ndarray:
    """Digits of ``index`` mirrored at the point: low-discrepancy numbers in [0, 1)."""
    result, scale = np.zeros(len(index)), 1.0
    index = index.copy()
    while index.any():
        scale /= base
        result += scale * (index % base)
        index //= base
    return result


def cumulative_counts(n_missing: int, n_passes: int) -> np.ndarray:
    """How many tokens are filled after each pass, (min(n_passes, n_missing),) int64: few at first, more later.

    Half a period of a cosine (MaskGIT), with at least one token a pass; the last count is ``n_missing``.
    """
    n_passes = min(n_passes, n_missing)
    share = 1.0 - np.cos(0.5 * np.pi * np.arange(1, n_passes + 1) / max(1, n_passes))
    counts = np.rint(n_missing * share).astype(np.int64)
    for i in range(n_passes):
        counts[i] = min(max(counts[i], (counts[i - 1] if i else 0) + 1), n_missing - (n_passes - 1 - i))
    return counts


def draw(logits: np.ndarray, uniform: np.ndarray, top_k: int, temperature: float) -> np.ndarray:
    """Tokens (...) int32 by inversion of the top-k distribution: logits (..., V), uniform (...) in [0, 1).

    Among equal logits the lower token counts as the likelier.
    """
    top_k = min(top_k, logits.shape[-1])
    best = np.argsort(-logits, axis=-1, kind='stable')[..., :top_k]  # (..., K)
    chosen = np.take_along_axis(logits, best, -1).astype(np.float64) / temperature
    weight = np.exp(chosen - chosen[..., :1])
    total = np.cumsum(weight, -1)
    number = (total <= (uniform * total[..., -1])[..., None]).sum(-1)
    return np.take_along_axis(best, np.minimum(number, top_k - 1)[..., None], -1)[..., 0].astype(np.int32)


def log_prob(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """log softmax at ``tokens``: (..., V), (...) -> (...) float64."""
    logits = logits.astype(np.float64)
    high = logits.max(-1)
    total = high + np.log(np.exp(logits - high[..., None]).sum(-1))
    return np.take_along_axis(logits, tokens[..., None], -1)[..., 0] - total


@dataclass
class _Picture:
    """A picture that is being filled; all arrays are changed in place.

    Attributes:
        tokens, missing: (T,) int32 and bool.
        log_probs: (T,) float64, of the tokens filled so far.
        uniform, gumbel: (T,) noise.
        counts: (n,) tokens that each pass fills.
    """

    tokens: np.ndarray
    missing: np.ndarray
    log_probs: np.ndarray
    uniform: np.ndarray
    gumbel: np.ndarray
    counts: np.ndarray

    def select(self, order: Order, step: int, positions: np.ndarray, log_probs: np.ndarray | None) -> np.ndarray:
        """Which of the missing ``positions`` pass ``step`` fills, as indices into them; none after the last pass."""
        if step >= len(self.counts):
            return np.empty(0, np.int64)
        remaining = 1.0 - (step + 1) / len(self.counts)
        priority = order.priority(positions, log_probs, self.gumbel[positions], remaining)
        return np.argsort(-priority, kind='stable')[:self.counts[step]]

    def fill(self, positions: np.ndarray, tokens: np.ndarray, log_probs: np.ndarray) -> None:
        self.tokens[positions], self.log_probs[positions], self.missing[positions] = tokens, log_probs, False


class Sampler:
    """Fills batches of pictures with holes of different sizes.

    Args:
        logits_at: the model.
        prior_size: side of the grid.
        codebook_rgb: colours of the tokens (V, 3) uint8, for the deterministic mode.
    """

    def __init__(self, logits_at: LogitsAt, prior_size: int, config: SamplingConfig,
                 codebook_rgb: np.ndarray | None = None) -> None:
        self.logits_at, self.config, self.codebook_rgb = logits_at, config, codebook_rgb
        self.n_positions = prior_size ** 2
        self.order = ORDERS[config.schedule](prior_size, config)

    def __call__(self, tokens: np.ndarray, holes: np.ndarray, rngs: Sequence[np.random.Generator],
                 on_pass: Callable[[int, int], None] = lambda done, total: None) -> list[Sample]:
        """tokens (B, T) int32, holes (B, T) bool, a generator for each picture -> a sample for each picture.

        Args:
            on_pass: called with (passes done, passes in all) after every forward pass.
        """
        missing = holes.copy()
        tokens = np.where(missing, 0, tokens).astype(np.int32)
        if self.config.deterministic:
            return self._expect(tokens, missing, on_pass)

        # All noise is drawn before the first pass
        uniform = np.stack([rng.random(self.n_positions) for rng in rngs])  # (B, T)
        gumbel = -np.log(-np.log(np.stack([rng.uniform(1e-12, 1.0, self.n_positions) for rng in rngs])))  # (B, T)
        counts = [np.diff(cumulative_counts(n, self.config.sample_steps or n), prepend=0) for n in holes.sum(1)]
        pictures = list(map(_Picture, tokens, missing, np.zeros(tokens.shape), uniform, gumbel, counts))

        n_passes = max(map(len, counts), default=0)
        for step in range(n_passes):
            # Positions to read: those to fill, or all missing ones if the order looks at the tokens drawn for them
            read = [np.flatnonzero(picture.missing) for picture in pictures]
            if not self.order.needs_log_prob:
                read = [positions[picture.select(self.order, step, positions, None)]
                        for picture, positions in zip(pictures, read, strict=True)]

            # Draw and fill
            all_logits = self._read(tokens, missing, read, everywhere=step == 0)
            for picture, positions, logits in zip(pictures, read, all_logits, strict=True):
                drawn = self.choose(positions, logits, picture.uniform[positions])
                log_probs = log_prob(logits, drawn)
                if self.order.needs_log_prob:
                    kept = picture.select(self.order, step, positions, log_probs)
                    positions, drawn, log_probs = positions[kept], drawn[kept], log_probs[kept]
                picture.fill(positions, drawn, log_probs)
            on_pass(step + 1, n_passes)
        return [Sample(p.tokens, float(p.log_probs[hole].sum())) for p, hole in zip(pictures, holes, strict=True)]

    def choose(self, positions: np.ndarray, logits: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Tokens (n,) int32 for ``positions`` (n,) by ``draw``: logits (n, V), uniform (n,)."""
        return draw(logits, uniform, self.config.top_k, self.config.temperature)

    def _read(self, tokens: np.ndarray, missing: np.ndarray, read: Sequence[np.ndarray],
              everywhere: bool) -> list[np.ndarray]:
        """Logits (n, V) at the n positions that ``read`` names for each picture.

        Args:
            everywhere: ask the model for all positions. The first pass of a sample does, so that a model that reuses
                what earlier calls computed knows that a new sample begins.
        """
        if everywhere:
            logits = self.logits_at(tokens, missing, self._all_positions(len(tokens)))  # (B, T, V)
            return [own[positions] for own, positions in zip(logits, read, strict=True)]
        n_read = max(map(len, read))  # a picture that is complete reads position 0, in vain
        padded = np.stack([np.resize(positions, n_read) for positions in read]).astype(np.int32)  # (B, P)
        logits = self.logits_at(tokens, missing, padded)  # (B, P, V)
        return [own[:len(positions)] for own, positions in zip(logits, read, strict=True)]

    def _all_positions(self, batch_size: int) -> np.ndarray:
        return np.tile(np.arange(self.n_positions, dtype=np.int32), (batch_size, 1))

    def _expect(self, tokens: np.ndarray, missing: np.ndarray, on_pass: Callable[[int, int], None]) -> list[Sample]:
        """One pass: the mean colour at every missing position, and the codebook colour nearest to it as the token."""
        assert self.codebook_rgb is not None, 'the deterministic mode needs the colours of the tokens'
        codebook_rgb = self.codebook_rgb.astype(np.float64)
        logits = self.logits_at(tokens, missing, self._all_positions(len(tokens))).astype(np.float64)
        weight = np.exp(logits - logits.max(-1, keepdims=True))
        weight /= weight.sum(-1, keepdims=True)
        expected = weight @ codebook_rgb  # (B, T, 3)
        nearest = ((expected[:, :, None] - codebook_rgb) ** 2).sum(-1).argmin(-1)
        tokens = np.where(missing, nearest, tokens).astype(np.int32)
        log_probs = log_prob(logits, tokens)
        on_pass(1, 1)
        return [Sample(*values) for values in zip(
            tokens, (float(p[m].sum()) for p, m in zip(log_probs, missing, strict=True)), expected, strict=True)]
