"""Filling the missing tokens (paper, section 3.1), over a plain callable; NumPy only.

The faithful sampler fills one token a forward pass in raster order. Fewer passes fill several tokens each, in an
order that spreads them over the hole (``halton``) or takes the surest first (``confidence``, after MaskGIT).
Each position has its own random number, drawn from (seed, image, sample) before anything else: which tokens share a
pass, a batch or a process changes nothing.
"""
from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

SCHEDULES = ('raster', 'halton', 'confidence')
STEP_SCHEDULES = ('cosine', 'linear')

# Logits at some positions:
# (tokens (B, T) int32, mask (B, T) float32 1 = missing, positions (B, P) int32) -> logits (B, P, V) float32
LogitsAt = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
# The same when only some rows are computed and keys and values of the others are kept from the call before:
# (tokens, mask, rows (B, P) int32, number of last rows R that are read) -> logits (B, R, V) float32
LogitsAfter = Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Settings:
    """How to sample.

    Attributes:
        top_k: only so many most likely tokens can be drawn.
        temperature: logits are divided by it.
        sample_steps: forward passes a picture; 0 = one for each missing token.
        schedule: which tokens a pass fills: one of SCHEDULES.
        step_schedule: how many: 'cosine' few at first and more later, 'linear' always the same number.
        deterministic: no sampling: the prior is the mean colour that the model expects.
        resample: this share of the tokens, those that were least likely when they were filled, is filled a second
            time, in the same share of further passes.
        reuse_window: a pass computes only this window around each token that the last one filled, and reuses keys
            and values of all other positions; 0 = every pass computes everything.
        refresh: with ``reuse_window``, every so many passes compute everything; 0 = the first alone.
    """

    top_k: int = 40
    temperature: float = 1.0
    sample_steps: int = 0
    schedule: str = 'raster'
    step_schedule: str = 'cosine'
    deterministic: bool = False
    resample: float = 0.0
    reuse_window: int = 0
    refresh: int = 0


@dataclass(frozen=True)
class Sample:
    """One completed picture.

    Attributes:
        tokens: (T,) int32.
        log_likelihood: sum over the hole of the log probability of each token when it was filled, under the model
            itself (temperature 1, all tokens), the second time where there was one; 0 for an empty hole.
        expected: with ``deterministic``, the mean colour at each position of the hole, (T, 3) float64 levels.
    """

    tokens: np.ndarray
    log_likelihood: float
    expected: np.ndarray | None = None


def generator_of(seed: int, image_id: str, sample_number: int) -> np.random.Generator:
    """The random generator of one sample of one picture."""
    digest = hashlib.sha256(f'{seed}/{sample_number}/{image_id}'.encode('utf-8', 'surrogateescape')).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))


def halton_order(prior_size: int) -> np.ndarray:
    """All positions of the grid in the order of the 2-D Halton sequence (bases 2 and 3): (T,) int64."""
    wanted = prior_size ** 2
    seen = np.zeros(wanted, bool)
    order: list[int] = []
    first = 1
    while len(order) < wanted:
        index = np.arange(first, first + 4 * wanted)
        rows = (_radical_inverse(index, 2) * prior_size).astype(np.int64)
        columns = (_radical_inverse(index, 3) * prior_size).astype(np.int64)
        for cell in (rows * prior_size + columns).tolist():
            if not seen[cell]:
                seen[cell] = True
                order.append(cell)
        first += 4 * wanted
    return np.array(order)


def _radical_inverse(index: np.ndarray, base: int) -> np.ndarray:
    """Digits of ``index`` mirrored at the point: low-discrepancy numbers in [0, 1)."""
    result, scale = np.zeros(len(index)), 1.0
    index = index.copy()
    while index.any():
        scale /= base
        result += scale * (index % base)
        index //= base
    return result


def step_ends(n_missing: int, n_steps: int, step_schedule: str) -> np.ndarray:
    """How many tokens are filled after each pass: increasing, the last is ``n_missing``; at least one a pass."""
    n_steps = min(n_steps, n_missing)
    passed = np.arange(1, n_steps + 1) / max(1, n_steps)
    share = passed if step_schedule == 'linear' else 1.0 - np.cos(0.5 * np.pi * passed)
    ends = np.rint(n_missing * share).astype(np.int64)
    for i in range(n_steps):
        ends[i] = min(max(ends[i], (ends[i - 1] if i else 0) + 1), n_missing - (n_steps - 1 - i))
    return ends


def resampled(n_missing: int, settings: Settings) -> tuple[int, int]:
    """(tokens filled a second time, passes for them) of ``n_missing``."""
    amount = round(settings.resample * n_missing)
    return amount, math.ceil(settings.resample * settings.sample_steps) if settings.sample_steps else amount


def most_at_once(positions: int, settings: Settings) -> int:
    """The largest number of positions that a pass reads, whatever the hole: the shape to compile for."""
    if settings.schedule == 'confidence' or settings.deterministic:
        return positions
    if settings.sample_steps == 0 or settings.sample_steps >= positions:
        return 1
    most = 1
    for missing in range(settings.sample_steps, positions + 1):
        for amount, steps in ((missing, settings.sample_steps), resampled(missing, settings)):
            if amount:
                most = max(most, int(np.diff(step_ends(amount, steps, settings.step_schedule), prepend=0).max()))
    return most


def draw(logits: np.ndarray, uniform: np.ndarray, top_k: int, temperature: float) -> np.ndarray:
    """Tokens (...) int32 by inversion of the top-k distribution: logits (..., V), uniform (...) in [0, 1).

    Among equal logits the lower token counts as the likelier.
    """
    top_k = min(top_k, logits.shape[-1])
    best = np.argsort(-logits, axis=-1, kind='stable')[..., :top_k]  # (..., K)
    chosen = np.take_along_axis(logits, best, -1).astype(np.float64) / temperature
    weight = np.exp(chosen - chosen[..., :1])
    total = np.cumsum(weight, -1)
    place = (total <= (uniform * total[..., -1])[..., None]).sum(-1)
    return np.take_along_axis(best, np.minimum(place, top_k - 1)[..., None], -1)[..., 0].astype(np.int32)


def log_probability(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """log softmax at ``tokens``: (..., V), (...) -> (...) float64."""
    logits = logits.astype(np.float64)
    high = logits.max(-1)
    total = high + np.log(np.exp(logits - high[..., None]).sum(-1))
    return np.take_along_axis(logits, tokens[..., None], -1)[..., 0] - total


@dataclass(frozen=True)
class _Noise:
    """What a round of filling draws from, (B, T) each; gumbel for 'confidence' alone."""

    uniform: np.ndarray
    gumbel: np.ndarray | None

    @classmethod
    def of(cls, rngs: Sequence[np.random.Generator], positions: int, settings: Settings) -> _Noise:
        uniform = np.stack([rng.random(positions) for rng in rngs])
        gumbel = None
        if settings.schedule == 'confidence' and not settings.deterministic:
            gumbel = -np.log(-np.log(np.stack([rng.uniform(1e-12, 1.0, positions) for rng in rngs])))
        return cls(uniform, gumbel)


class Sampler:
    """Fills batches of pictures with holes of different sizes.

    Args:
        logits_at: the model.
        prior_size: side of the grid.
        settings: how.
        colours: palette levels (V, 3), for the deterministic mode.
        logits_after: the model with kept keys and values, for ``reuse_window``.
    """

    def __init__(self, logits_at: LogitsAt, prior_size: int, settings: Settings, colours: np.ndarray | None = None,
                 logits_after: LogitsAfter | None = None) -> None:
        self.logits_at, self.settings, self.colours, self.logits_after = logits_at, settings, colours, logits_after
        self.prior_size, self.positions = prior_size, prior_size ** 2
        self.read_at_once = most_at_once(self.positions, settings)
        self.full_order = halton_order(prior_size) if settings.schedule == 'halton' else np.arange(self.positions)

    def __call__(self, tokens: np.ndarray, holes: np.ndarray, rngs: Sequence[np.random.Generator],
                 on_pass: Callable[[int, int], None] = lambda done, total: None) -> list[Sample]:
        """tokens (B, T) int32, holes (B, T) bool, a generator for each row -> a sample for each row.

        Args:
            on_pass: called with (passes done, passes in all) after every forward pass.
        """
        settings = self.settings
        tokens = tokens.astype(np.int32)  # a copy: inputs stay as they are
        missing = holes.copy()
        tokens[missing] = 0
        noise = [_Noise.of(rngs, self.positions, settings) for _ in range(2 if settings.resample else 1)]
        if settings.deterministic:
            return self._expect(tokens, missing, on_pass)
        sure = np.zeros(tokens.shape)  # log probability of each token when it was filled
        counts = holes.sum(1)
        rounds = [[step_ends(int(n), settings.sample_steps or int(n), settings.step_schedule) for n in counts]]
        if settings.resample:
            again = [resampled(int(n), settings) for n in counts]
            rounds.append([step_ends(*amounts, settings.step_schedule) for amounts in again])
        passes = sum(max((len(e) for e in ends), default=0) for ends in rounds)
        done = 0
        for number, (ends, own) in enumerate(zip(rounds, noise, strict=True)):
            if number:
                for b, (amount, _) in enumerate(again):
                    places = np.flatnonzero(holes[b])
                    least = places[np.argsort(sure[b, places], kind='stable')[:amount]]
                    missing[b, least], tokens[b, least] = True, 0
            done = self._fill(tokens, missing, sure, ends, own, lambda step: on_pass(step, passes), done)
        return [Sample(t, float(s[h].sum())) for t, s, h in zip(tokens, sure, holes, strict=True)]

    def _fill(self, tokens: np.ndarray, missing: np.ndarray, sure: np.ndarray, ends: list[np.ndarray], noise: _Noise,
              on_pass: Callable[[int], None], done: int) -> int:
        """Fill everything that is missing, in place, in the passes that ``ends`` tells; returns passes done so far."""
        settings = self.settings
        orders = [self.full_order[hole[self.full_order]] for hole in missing]
        filled: list[np.ndarray] = [np.empty(0, np.int64)] * len(tokens)
        for step in range(max((len(e) for e in ends), default=0)):
            due = [slice(e[step - 1] if step else 0, e[step]) if step < len(e) else slice(0, 0) for e in ends]
            shown = missing.astype(np.float32)
            if settings.schedule == 'confidence':
                where = np.broadcast_to(np.arange(self.positions, dtype=np.int32), tokens.shape)
                logits = self.logits_at(tokens, shown, np.ascontiguousarray(where))  # (B, T, V)
            elif settings.reuse_window:
                everything = step == 0 or (settings.refresh > 0 and step % settings.refresh == 0)
                where = np.stack([self._rows(order[part], last, everything)
                                  for order, part, last in zip(orders, due, filled, strict=True)])
                logits = self.logits_after(tokens, shown, where, self.read_at_once)  # (B, R, V), due ones last
            else:
                where = np.zeros((len(tokens), self.read_at_once), np.int32)
                for b, part in enumerate(due):
                    where[b, :part.stop - part.start] = orders[b][part]
                logits = self.logits_at(tokens, shown, where)  # (B, R, V), due ones first
            for b, part in enumerate(due):
                amount = part.stop - part.start
                if amount == 0:
                    continue
                if settings.schedule == 'confidence':
                    open_ = np.flatnonzero(missing[b])
                    drawn = self.choose(open_, logits[b, open_], noise.uniform[b, open_])
                    found = log_probability(logits[b, open_], drawn)
                    left = 1.0 - (step + 1) / len(ends[b])
                    keep = np.argsort(-(found + settings.temperature * left * noise.gumbel[b, open_]),
                                      kind='stable')[:amount]
                    now, drawn, found = open_[keep], drawn[keep], found[keep]
                else:
                    now = filled[b] = orders[b][part]
                    read = logits[b, -amount:] if settings.reuse_window else logits[b, :amount]  # (amount, V)
                    drawn = self.choose(now, read, noise.uniform[b, now])
                    found = log_probability(read, drawn)
                tokens[b, now], sure[b, now] = drawn, found
                missing[b, now] = False
            done += 1
            on_pass(done)
        return done

    def choose(self, places: np.ndarray, logits: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Tokens (n,) int32 for ``places`` (n,) by ``draw``: logits (n, V), uniform (n,)."""
        return draw(logits, uniform, self.settings.top_k, self.settings.temperature)

    def _rows(self, due: np.ndarray, last: np.ndarray, everything: bool) -> np.ndarray:
        """Different positions (P,) int32 to compute: windows around ``last``, then ``due``, others before them.

        P is T, or the most that any pass can need.
        """
        side, reach = self.prior_size, self.settings.reuse_window // 2
        wanted = np.zeros((side, side), bool)
        for row, column in zip(*np.divmod(last, side), strict=True):
            wanted[max(0, row - reach):row + reach + 1, max(0, column - reach):column + reach + 1] = True
        rank = wanted.reshape(-1).astype(np.int8)
        rank[due] = 2
        order = np.argsort(rank, kind='stable')
        order[len(order) - len(due):] = due
        at_most = self.positions if everything else min(self.positions, self.read_at_once * (
            self.settings.reuse_window ** 2 + 1))
        return order[self.positions - at_most:].astype(np.int32)

    def _expect(self, tokens: np.ndarray, missing: np.ndarray, on_pass: Callable[[int, int], None]) -> list[Sample]:
        """One pass: the mean colour at every missing position, and the palette colour nearest to it as the token."""
        where = np.broadcast_to(np.arange(self.positions, dtype=np.int32), tokens.shape)
        logits = self.logits_at(tokens, missing.astype(np.float32), np.ascontiguousarray(where)).astype(np.float64)
        weight = np.exp(logits - logits.max(-1, keepdims=True))
        weight /= weight.sum(-1, keepdims=True)
        expected = weight @ self.colours.astype(np.float64)  # (B, T, 3)
        nearest = ((expected[:, :, None] - self.colours.astype(np.float64)) ** 2).sum(-1).argmin(-1)
        tokens = np.where(missing, nearest, tokens).astype(np.int32)
        sure = log_probability(logits, tokens)
        on_pass(1, 1)
        return [Sample(t, float(s[m].sum()), e) for t, s, m, e in zip(tokens, sure, missing, expected, strict=True)]


SamplingConfig = Settings
