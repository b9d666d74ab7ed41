"""The predictor: the network's logits, only the rows that are needed, and nothing left of earlier samples."""
from __future__ import annotations

from contextlib import suppress

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import made_up, parity, set_weights
from tests.parity.numpy_transformer import Reference
from Transformer.infer import REUSES
from Transformer.models.config import GPTConfig
from Transformer.models.networks import GPT
from Transformer.models.predict import Predictor
from Transformer.models.sampling import ORDERS, Sampler, SamplingConfig, noise_generator

TOLERANCE = 1e-4
SIDE, VOCAB = 12, 11
T = SIDE * SIDE
CONFIG = GPTConfig(n_layer=3, n_embd=16, n_head=2, prior_size=SIDE, vocab_size=VOCAB, GELU_2=True)
WEIGHTS = made_up(CONFIG.shapes(), 5)
EVERYWHERE = np.arange(T, dtype=np.int32)[None]


def predictor(reuse: str, batch_size: int = 1, config: GPTConfig = CONFIG, amp_level: str = 'O0') -> Predictor:
    return Predictor(WEIGHTS.__getitem__, config, batch_size, reuse, amp_level)


def scene(seed: int, n_missing: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """tokens (1, T) int32 and a hole (1, T) bool."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, VOCAB, (1, T)).astype(np.int32), rng.permutation(T)[None] < n_missing


def filled(tokens: np.ndarray, mask: np.ndarray, read: np.ndarray, token: int) -> tuple[np.ndarray, np.ndarray]:
    tokens, mask = tokens.copy(), mask.copy()
    tokens[0, read], mask[0, read] = token % VOCAB, False
    return tokens, mask


def due(mask: np.ndarray, call: int) -> set[int]:
    """Missing positions whose turn it is in a call, the first after the pass of all positions being number 0."""
    turns = [(0, 1), (2, 3), (0, 1), (2, 3), *[(0,), (1,), (2,), (3,)] * 3][call]
    return {position for position in np.flatnonzero(mask).tolist()
            if (2 * (position // SIDE) + position % SIDE) % 4 in turns}


class Spy:
    """A predictor's network that notes which rows each pass computes, and how many with the copies among them."""

    def __init__(self, model: Predictor) -> None:
        self.network, self.rows, self.computed = model.network, [], []
        model.network, block = self, self.network.block
        self.network.block = lambda x, *rest: (self.computed.append(x.shape[0]), block(x, *rest))[1]

    def __call__(self, tokens, mask, rows, kv_cache):
        self.rows.append([set(own.tolist()) for own in rows])
        return self.network(tokens, mask, rows, kv_cache)


@pytest.mark.parametrize(('gelu_2', 'gelu'), [(True, 'tanh'), (False, 'tanh'), (False, 'erf')])
@pytest.mark.parametrize('batch_size', [1, 2])
def test_logits_equal_the_network_and_float64(gelu_2, gelu, batch_size):
    config = GPTConfig(3, 16, 2, SIDE, VOCAB, gelu_2, gelu)
    net = GPT(VOCAB, 16, 3, 2, T, gelu_2, gelu=gelu)
    set_weights(net, WEIGHTS)
    net.set_train(False)
    tokens, mask = (np.concatenate(arrays) for arrays in zip(*map(scene, range(3)), strict=True))
    logits = predictor('none', batch_size, config).logits_at(tokens, mask, np.repeat(EVERYWHERE, 3, 0))
    np.testing.assert_allclose(logits, net(ms.Tensor(tokens), ms.Tensor(mask.astype(np.float32))).asnumpy(),
                               atol=TOLERANCE)
    reference = Reference(WEIGHTS, config)
    for own, row, hole in zip(logits, tokens, mask, strict=True):
        np.testing.assert_allclose(own, reference(row, hole, np.arange(T)), atol=TOLERANCE)


@pytest.mark.parametrize('batch_size', [1, 2])
def test_rows_with_kept_keys_and_values_equal_float64(batch_size):
    tokens, mask = (np.concatenate(arrays) for arrays in zip(scene(1, 50), scene(2, 20), strict=True))
    model = predictor('hole', batch_size)
    references = [Reference(WEIGHTS, CONFIG) for _ in range(2)]
    model.logits_at(tokens, mask, np.repeat(EVERYWHERE, 2, 0))
    for reference, row, hole in zip(references, tokens, mask, strict=True):
        reference(row, hole, np.arange(T))
    for step in range(12):
        before, tokens, mask = mask.copy(), tokens.copy(), mask.copy()
        for b in range(2):  # one or two tokens of each are filled
            positions = np.flatnonzero(mask[b])[step % 3::3][:2 - b]
            tokens[b, positions], mask[b, positions] = step % VOCAB, False
        read = np.stack([np.flatnonzero(hole)[:2] for hole in mask])  # (2, 2)
        logits = model.logits_at(tokens, mask, read)
        for b, reference in enumerate(references):
            new = np.flatnonzero(before[b] & ~mask[b])
            rows = np.array(sorted({*new.tolist(), *due(mask[b], step), *read[b].tolist()}))
            wanted = reference(tokens[b], mask[b], rows)[np.searchsorted(rows, read[b])]
            np.testing.assert_allclose(logits[b], wanted, atol=TOLERANCE)


@pytest.mark.parametrize('reuse', REUSES)
def test_exactly_the_rows_of_the_rule_are_computed(reuse):
    (tokens, mask), model = scene(3, 140), predictor(reuse)
    spy = Spy(model)
    model.logits_at(tokens, mask, EVERYWHERE)
    wanted = [set(range(T))]
    for step in range(13):
        read = np.flatnonzero(mask[0])[:10]
        tokens, mask = filled(tokens, mask, read, step)
        following = np.flatnonzero(mask[0])[:10]
        model.logits_at(tokens, mask, following[None])
        wanted.append(set(range(T)) if reuse == 'none' else {*read.tolist(), *following.tolist(), *due(mask[0], step)})
    assert [rows for rows, in spy.rows] == wanted
    for rows, computed in zip(wanted, spy.computed[::CONFIG.n_layer], strict=True):  # copies fill up the number
        assert computed == (128 if len(rows) <= 128 else T)


def test_the_sampler_has_filled_and_read_tokens_computed_no_known_ones_and_few_others():
    (tokens, hole), model, seen = scene(4, 60), predictor('hole'), []
    spy = Spy(model)

    def watching(now: np.ndarray, mask: np.ndarray, positions: np.ndarray) -> np.ndarray:
        seen.append(set(np.flatnonzero(mask[0]).tolist()))
        return model.logits_at(now, mask, positions)

    config = SamplingConfig(sample_steps=8, schedule='halton')
    Sampler(watching, SIDE, config)(tokens, hole, [noise_generator(0, 'a', 1)])
    assert len(seen) == 8 and spy.rows[0] == [set(range(T))]
    for (rows,), before, missing, following in zip(spy.rows[1:], seen[:-1], seen[1:], [*seen[2:], set()], strict=True):
        assert before - missing <= rows <= before  # filled since the last call; no known one is computed again
        assert missing - following <= rows  # what this call reads
    assert sum(len(rows) for rows, in spy.rows[1:]) < 0.8 * sum(map(len, seen[:-1]))


def test_turns_begin_anew_with_every_sample():
    (tokens, hole), model = scene(13, 90), predictor('hole')
    spy = Spy(model)
    sampler = Sampler(model.logits_at, SIDE, SamplingConfig(sample_steps=8, schedule='halton'))
    for k in range(1, 3):
        sampler(tokens, hole, [noise_generator(0, 'a', k)])
    assert len(spy.rows) == 1 + 7 + 7 and spy.rows[1:8] == spy.rows[8:]


@pytest.mark.parametrize(('skipped', 'calls'), [(0, 2), (2, 4), (4, 8)])
def test_no_missing_position_waits_longer_than_its_turn(skipped, calls):
    (tokens, mask), model = scene(12, 100), predictor('hole')
    spy = Spy(model)
    model.logits_at(tokens, mask, EVERYWHERE)
    for step in range(calls):
        tokens, mask = filled(tokens, mask, np.flatnonzero(mask[0])[:3], step)
        model.logits_at(tokens, mask, np.flatnonzero(mask[0])[None, :1])
    missing = set(np.flatnonzero(mask[0]).tolist())
    assert set().union(*(rows for rows, in spy.rows[1 + skipped:])) >= missing


@pytest.mark.parametrize('reuse', REUSES)
def test_all_samples_of_a_picture_share_the_first_pass(reuse):
    (tokens, hole), model = scene(5), predictor(reuse)
    spy = Spy(model)
    sampler = Sampler(model.logits_at, SIDE, SamplingConfig(sample_steps=4, schedule='halton'))
    for k in range(1, 4):
        sampler(tokens, hole, [noise_generator(0, 'a', k)])
    assert len(spy.rows) == 4 + 3 + 3


class StoppedError(Exception):
    """A sample is stopped before its end."""


# Pictures of equal known tokens with one hole inside the other, so that a call may look like the next of another one
NESTED = [(np.zeros((1, T), np.int32), np.arange(T)[None] < n) for n in (90, 40)] + [scene(6, 30)]


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(REUSES), st.sampled_from(list(ORDERS)), st.sampled_from([1, 3]),
       st.lists(st.tuples(st.integers(0, 2), st.integers(1, 2), st.sampled_from([0, 1, 2])), min_size=2, max_size=5))
def test_a_sample_is_the_same_whatever_was_sampled_or_interrupted_before(reuse, schedule, steps, story):
    config = SamplingConfig(top_k=1, sample_steps=steps, schedule=schedule)

    def sampled(model: Predictor, picture: int, number: int, stop: int) -> list[bytes]:
        logits = []

        def watching(*call: np.ndarray) -> np.ndarray:
            logits.append(model.logits_at(*call))
            if len(logits) == stop:
                raise StoppedError
            return logits[-1]

        with suppress(StoppedError):
            Sampler(watching, SIDE, config)(*NESTED[picture], [noise_generator(0, str(picture), number)])
        return [array.tobytes() for array in logits]

    model = predictor(reuse)
    for picture, number, stop in story:
        assert sampled(model, picture, number, stop) == sampled(predictor(reuse), picture, number, stop)


@pytest.mark.parametrize('reuse', REUSES)
@pytest.mark.parametrize('schedule', ORDERS)
def test_a_batch_gives_the_bytes_of_its_pictures_alone(reuse, schedule):
    scenes = [scene(seed, n_missing) for seed, n_missing in ((7, 60), (8, 0), (9, 3), (10, 144))]
    config = SamplingConfig(sample_steps=5, schedule=schedule)
    tokens, holes = (np.concatenate(arrays) for arrays in zip(*scenes, strict=True))
    together = Sampler(predictor(reuse).logits_at, SIDE, config)(
        tokens, holes, [noise_generator(0, str(i), 1) for i in range(4)])
    for i, sample in enumerate(together):
        alone, = Sampler(predictor(reuse).logits_at, SIDE, config)(*scenes[i], [noise_generator(0, str(i), 1)])
        assert sample.tokens.tobytes() == alone.tokens.tobytes() and sample.log_likelihood == alone.log_likelihood


def test_greedy_tokens_equal_the_published():
    arrays = parity('transformer_greedy_gelu2_1.npz')
    vocab_size, n_embd, n_layer, n_head, block_size = (int(v) for v in arrays['config'])
    config = GPTConfig(n_layer, n_embd, n_head, int(block_size ** 0.5), vocab_size, True)
    model = Predictor(made_up(config.shapes(), 7).__getitem__, config, 2, 'none')
    samples = Sampler(model.logits_at, config.prior_size, SamplingConfig(top_k=1))(
        arrays['idx'], arrays['masks'] > 0, [np.random.default_rng(i) for i in range(2)])
    np.testing.assert_array_equal(np.stack([s.tokens for s in samples]), arrays['tokens'])


def test_half_precision_stays_near_single_with_kept_keys_and_values():
    tokens, mask = scene(11)
    models = [predictor('hole'), predictor('hole', amp_level='O2')]
    for step, read in enumerate(np.flatnonzero(mask[0]).reshape(5, 10)):
        positions = EVERYWHERE if step == 0 else read[None]
        single, half = (model.logits_at(tokens, mask, positions) for model in models)
        assert half.dtype == np.float32 and 0 < np.abs(half - single).max() < 2e-2
        tokens, mask = filled(tokens, mask, read, step)
