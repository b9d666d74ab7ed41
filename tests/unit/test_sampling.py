"""Sampling: orders that fill every hole once, and noise that nothing else can move."""
from __future__ import annotations

import numpy as np
import pytest

from Transformer.models import sampling
from Transformer.models.sampling import ORDERS, Order, Sampler, SamplingConfig, noise_generator

VOCAB, SIDE = 11, 6
T = SIDE * SIDE


def toy_logits(tokens: np.ndarray, mask: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """A model whose answer depends on every visible token, computed row by row."""
    mixed = np.where(mask > 0, -1, tokens) + np.arange(T)
    out = np.empty((*positions.shape, VOCAB), np.float32)
    for b in range(len(tokens)):
        for p, position in enumerate(positions[b]):
            rng = np.random.default_rng([int(position), int(np.abs(mixed[b]).sum())])
            out[b, p] = rng.standard_normal(VOCAB)
    return out


def everywhere(n: int) -> np.ndarray:
    return np.broadcast_to(np.arange(T), (n, T))


def batch(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    holes = rng.random((n, T)) < np.linspace(0.1, 0.9, n)[:, None]
    holes[0] = False
    return rng.integers(0, VOCAB, (n, T)).astype(np.int32), holes


def run(config: SamplingConfig, tokens: np.ndarray, holes: np.ndarray, ids: list[int], logits=toy_logits) -> np.ndarray:
    sampler = Sampler(logits, SIDE, config)
    return np.stack([s.tokens for s in sampler(tokens, holes, [noise_generator(0, str(i), 1) for i in ids])])


# One picture as the sampler filled it at first (hexadecimal), and its log-likelihood
@pytest.mark.parametrize(('schedule', 'steps', 'filled', 'log_likelihood'), [
    ('raster', 0, '6a31108593aa81448aa36aa2060446132412', -47.52955068893658),
    ('raster', 5, '6a30314828388828a9938721368465301418', -43.06763109742536),
    ('halton', 0, '3aa881396945844a48938921020413173414', -47.60146839902666),
    ('halton', 5, '4a95817167418311822381242a14a4149417', -46.28862322672489),
    ('confidence', 0, '0a83031a772089a786233356520404343414', -28.47551563903644),
    ('confidence', 5, '7a385803625187a70183775a951441643413', -42.27395083177575)])
def test_equal_logits_and_seeds_give_the_tokens_of_earlier_versions(schedule, steps, filled, log_likelihood):
    tokens, holes = batch(5)
    config = SamplingConfig(top_k=5, temperature=0.8, sample_steps=steps, schedule=schedule)
    sample, = Sampler(toy_logits, SIDE, config)(tokens[4:], holes[4:], [noise_generator(0, '4', 1)])
    assert ''.join(f'{token:x}' for token in sample.tokens) == filled
    assert sample.log_likelihood == pytest.approx(log_likelihood, abs=1e-9)


@pytest.mark.parametrize('side', [1, 6, 32, 48])
def test_halton_order_is_a_permutation_that_spreads_out(side):
    order = sampling.halton_order(side)
    np.testing.assert_array_equal(np.sort(order), np.arange(side ** 2))
    if side >= 32:  # the first sixteenth has a token in every quarter of a quarter
        first = order[:side * side // 16]
        blocks = {(p // side * 4 // side, p % side * 4 // side) for p in first.tolist()}
        assert len(blocks) == 16


def test_every_pass_fills_something_and_the_last_one_the_rest():
    for missing in (1, 2, 7, 100, 1024):
        for passes in (1, 2, 5, 16, 2000):
            counts = sampling.cumulative_counts(missing, passes)
            assert len(counts) == min(passes, missing) and counts[-1] == missing
            assert (np.diff(counts, prepend=0) >= 1).all()


def test_counts_follow_a_cosine():
    # 100 (1 - cos(pi/2 * k/4)) = 7.6, 29.3, 61.7, 100
    np.testing.assert_array_equal(sampling.cumulative_counts(100, 4), [8, 29, 62, 100])


@pytest.mark.parametrize('schedule', ORDERS)
@pytest.mark.parametrize('steps', [0, 1, 5, 1000])
def test_every_missing_token_is_filled_exactly_once_and_no_other_moves(schedule, steps):
    tokens, holes = batch(5)
    before = tokens.copy(), holes.copy()
    filled = np.zeros((5, T), int)
    masks = []

    def watching(now: np.ndarray, mask: np.ndarray, positions: np.ndarray) -> np.ndarray:
        if masks:
            np.add(filled, masks[-1] & ~mask, out=filled)
        masks.append(mask.copy())
        return toy_logits(now, mask, positions)

    config = SamplingConfig(top_k=5, sample_steps=steps, schedule=schedule)
    out = run(config, tokens, holes, list(range(5)), watching)
    assert len(masks) == min(steps or T, holes.sum(1).max())
    np.testing.assert_array_equal(filled + masks[-1], holes)
    np.testing.assert_array_equal(out[~holes], tokens[~holes])
    assert (out >= 0).all() and (out < VOCAB).all()
    np.testing.assert_array_equal(tokens, before[0])
    np.testing.assert_array_equal(holes, before[1])


@pytest.mark.parametrize('schedule', ['raster', 'halton'])
def test_passes_after_the_first_read_what_they_fill_and_the_first_one_everything(schedule):
    tokens, holes = batch(3)
    calls = []

    def watching(now: np.ndarray, mask: np.ndarray, positions: np.ndarray) -> np.ndarray:
        calls.append((mask.copy(), positions.copy()))
        return toy_logits(now, mask, positions)

    run(SamplingConfig(sample_steps=4, schedule=schedule), tokens, holes, [0, 1, 2], watching)
    np.testing.assert_array_equal(calls[0][1], everywhere(3))
    masks = [mask for mask, _ in calls] + [np.zeros((3, T), bool)]
    for (mask, positions), after in zip(calls[1:], masks[2:], strict=True):
        for b in (1, 2):
            assert set(positions[b]) == set(np.flatnonzero(mask[b] & ~after[b]))


@pytest.mark.parametrize('schedule', ORDERS)
@pytest.mark.parametrize('steps', [0, 5])
def test_neither_batch_nor_order_changes_a_picture(schedule, steps):
    tokens, holes = batch(6)
    config = SamplingConfig(top_k=5, sample_steps=steps, schedule=schedule)
    together = run(config, tokens, holes, list(range(6)))
    alone = np.concatenate([run(config, tokens[i:i + 1], holes[i:i + 1], [i]) for i in range(6)])
    np.testing.assert_array_equal(together, alone)
    turned = run(config, tokens[::-1], holes[::-1], list(range(6))[::-1])
    np.testing.assert_array_equal(together, turned[::-1])


def test_more_steps_than_missing_tokens_is_the_sequential_case():
    tokens, holes = batch(6)
    sequential = run(SamplingConfig(top_k=5), tokens, holes, list(range(6)))
    many = run(SamplingConfig(top_k=5, sample_steps=10 ** 6), tokens, holes, list(range(6)))
    np.testing.assert_array_equal(sequential, many)
    just = run(SamplingConfig(top_k=5, sample_steps=int(holes[3].sum())), tokens[3:4], holes[3:4], [3])
    np.testing.assert_array_equal(sequential[3:4], just)


def test_a_new_order_is_a_class_and_an_entry_in_a_table(monkeypatch):
    class Backwards(Order):
        def priority(self, positions, log_probs, gumbel, remaining):
            return positions

    monkeypatch.setitem(ORDERS, 'backwards', Backwards)
    tokens, holes = batch(2)
    masks = []

    def watching(now: np.ndarray, mask: np.ndarray, positions: np.ndarray) -> np.ndarray:
        masks.append(mask[1].copy())
        return toy_logits(now, mask, positions)

    run(SamplingConfig(schedule='backwards'), tokens, holes, [0, 1], watching)
    left = np.flatnonzero(holes[1])
    for number, mask in enumerate(masks):
        np.testing.assert_array_equal(np.flatnonzero(mask), left[:len(left) - number])


def test_other_seeds_samples_and_pictures_have_other_noise():
    tokens, holes = batch(2, seed=3)
    rngs = [noise_generator(0, 'a', 1), noise_generator(1, 'a', 1), noise_generator(0, 'a', 2),
            noise_generator(0, 'b', 1)]
    drawn = {Sampler(toy_logits, SIDE, SamplingConfig())(tokens[1:], holes[1:], [rng])[0].tokens.tobytes()
             for rng in rngs}
    assert len(drawn) == 4


def test_draws_have_the_top_k_distribution():
    logits = np.log(np.array([0.5, 0.2, 0.2, 0.06, 0.04], np.float32))
    uniform = np.random.default_rng(0).random(40000)
    drawn = sampling.draw(np.broadcast_to(logits, (40000, 5)), uniform, 3, 1.0)
    share = np.bincount(drawn, minlength=5) / 40000
    np.testing.assert_allclose(share, [0.5 / 0.9, 0.2 / 0.9, 0.2 / 0.9, 0, 0], atol=0.01)
    cold = sampling.draw(np.broadcast_to(logits, (40000, 5)), uniform, 5, 0.5)
    square = np.array([0.5, 0.2, 0.2, 0.06, 0.04]) ** 2
    np.testing.assert_allclose(np.bincount(cold, minlength=5) / 40000, square / square.sum(), atol=0.01)


@pytest.mark.parametrize('schedule', ORDERS)
def test_log_likelihood_is_that_of_the_tokens_drawn(schedule):
    tokens, holes = batch(3)
    total = np.zeros(3)
    calls = []

    def watching(now: np.ndarray, mask: np.ndarray, positions: np.ndarray) -> np.ndarray:
        calls.append((mask.copy(), toy_logits(now, mask, everywhere(3))))
        return toy_logits(now, mask, positions)

    samples = Sampler(watching, SIDE, SamplingConfig(sample_steps=4, schedule=schedule))(
        tokens, holes, [noise_generator(0, str(i), 1) for i in range(3)])
    masks = [mask for mask, _ in calls] + [np.zeros((3, T), bool)]
    for (before, logits), after in zip(calls, masks[1:], strict=True):
        for b, position in zip(*np.nonzero(before & ~after), strict=True):
            row = logits[b, position].astype(np.float64)
            total[b] += row[samples[b].tokens[position]] - np.log(np.exp(row).sum())
    np.testing.assert_allclose([s.log_likelihood for s in samples], total, rtol=1e-9)


def test_deterministic_mode_gives_the_expected_colour_whatever_the_seed():
    tokens, holes = batch(3)
    codebook_rgb = np.random.default_rng(1).integers(0, 256, (VOCAB, 3)).astype(np.uint8)
    sampler = Sampler(toy_logits, SIDE, SamplingConfig(deterministic=True), codebook_rgb)
    one, other = (sampler(tokens, holes, [noise_generator(seed, 'a', 1)] * 3) for seed in (0, 1))
    logits = toy_logits(np.where(holes, 0, tokens), holes, everywhere(3)).astype(np.float64)
    weight = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for b in range(3):
        expected = weight[b] @ codebook_rgb.astype(float)
        nearest = ((expected[:, None] - codebook_rgb) ** 2).sum(-1).argmin(-1)
        np.testing.assert_array_equal(one[b].tokens, np.where(holes[b], nearest, tokens[b]))
        np.testing.assert_array_equal(one[b].tokens, other[b].tokens)
        np.testing.assert_allclose(one[b].expected[holes[b]], expected[holes[b]], rtol=1e-6)
