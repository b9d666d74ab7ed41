"""Sampling: the published greedy tokens, orders that fill every hole once, and noise that nothing else can move."""
from __future__ import annotations

import itertools

import mindspore as ms
import numpy as np
import pytest

from tests.conftest import made_up, parity, set_weights
from Transformer.models import predict, sampling
from Transformer.models.networks import GPT
from Transformer.models.sampling import Sampler, Settings, generator_of

VOCAB, SIDE = 11, 6
T = SIDE * SIDE


def toy_logits(tokens: np.ndarray, masks: np.ndarray, where: np.ndarray) -> np.ndarray:
    """A model whose answer depends on every visible token, computed row by row."""
    mixed = np.where(masks > 0, -1, tokens) + np.arange(T)
    out = np.empty((*where.shape, VOCAB), np.float32)
    for b in range(len(tokens)):
        for p, position in enumerate(where[b]):
            rng = np.random.default_rng([int(position), int(np.abs(mixed[b]).sum())])
            out[b, p] = rng.standard_normal(VOCAB)
    return out


def batch(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    holes = rng.random((n, T)) < np.linspace(0.1, 0.9, n)[:, None]
    holes[0] = False
    return rng.integers(0, VOCAB, (n, T)).astype(np.int32), holes


def run(settings: Settings, tokens: np.ndarray, holes: np.ndarray, ids: list[int], logits=toy_logits) -> np.ndarray:
    sampler = Sampler(logits, SIDE, settings)
    return np.stack([s.tokens for s in sampler(tokens, holes, [generator_of(0, str(i), 1) for i in ids])])


def test_greedy_tokens_equal_the_published():
    arrays = parity('transformer_greedy_gelu2_1.npz')
    vocab, n_embd, n_layer, n_head, block = (int(v) for v in arrays['config'])
    net = GPT(vocab, n_embd, n_layer, n_head, block, True)
    set_weights(net, made_up({p.name: p.shape for p in net.get_parameters()}, 7))
    net.set_train(False)
    model = predict.Predictor(net, 2, block)
    sampler = Sampler(model, int(block ** 0.5), Settings(top_k=1))
    samples = sampler(arrays['idx'], arrays['masks'] > 0, [np.random.default_rng(i) for i in range(2)])
    np.testing.assert_array_equal(np.stack([s.tokens for s in samples]), arrays['tokens'])


@pytest.mark.parametrize('side', [1, 6, 32, 48])
def test_halton_order_is_a_permutation_that_spreads_out(side):
    order = sampling.halton_order(side)
    np.testing.assert_array_equal(np.sort(order), np.arange(side ** 2))
    if side >= 32:  # the first sixteenth has a token in every quarter of a quarter
        first = order[:side * side // 16]
        blocks = {(p // side * 4 // side, p % side * 4 // side) for p in first.tolist()}
        assert len(blocks) == 16


@pytest.mark.parametrize('kind', sampling.STEP_SCHEDULES)
def test_step_ends_fill_everything_and_something_every_pass(kind):
    for missing in (1, 2, 7, 100, 1024):
        for steps in (1, 2, 5, 16, 2000):
            ends = sampling.step_ends(missing, steps, kind)
            assert len(ends) == min(steps, missing) and ends[-1] == missing
            assert (np.diff(ends, prepend=0) >= 1).all()


def test_step_ends_by_hand():
    np.testing.assert_array_equal(sampling.step_ends(8, 4, 'linear'), [2, 4, 6, 8])
    # 100 (1 - cos(pi/2 * k/4)) = 7.6, 29.3, 61.7, 100
    np.testing.assert_array_equal(sampling.step_ends(100, 4, 'cosine'), [8, 29, 62, 100])


@pytest.mark.parametrize('schedule', sampling.SCHEDULES)
@pytest.mark.parametrize('steps', [0, 1, 5, 1000])
def test_every_missing_token_is_filled_exactly_once_and_no_other_moves(schedule, steps):
    tokens, holes = batch(5)
    before = tokens.copy(), holes.copy()
    filled = np.zeros((5, T), int)
    last = {}

    def watching(now: np.ndarray, masks: np.ndarray, where: np.ndarray) -> np.ndarray:
        if 'mask' in last:
            np.add(filled, (last['mask'] > 0) & (masks == 0), out=filled)
        last['mask'] = masks.copy()
        return toy_logits(now, masks, where)

    out = run(Settings(top_k=5, sample_steps=steps, schedule=schedule), tokens, holes, list(range(5)), watching)
    filled += last['mask'] > 0
    np.testing.assert_array_equal(filled, holes)
    np.testing.assert_array_equal(out[~holes], tokens[~holes])
    assert (out >= 0).all() and (out < VOCAB).all()
    np.testing.assert_array_equal(tokens, before[0])
    np.testing.assert_array_equal(holes, before[1])


@pytest.mark.parametrize('schedule', sampling.SCHEDULES)
@pytest.mark.parametrize(('steps', 'resample'), [(0, 0.0), (5, 0.0), (5, 0.3)])
def test_neither_batch_nor_order_changes_a_picture(schedule, steps, resample):
    tokens, holes = batch(6)
    settings = Settings(top_k=5, sample_steps=steps, schedule=schedule, resample=resample)
    together = run(settings, tokens, holes, list(range(6)))
    alone = np.concatenate([run(settings, tokens[i:i + 1], holes[i:i + 1], [i]) for i in range(6)])
    np.testing.assert_array_equal(together, alone)
    turned = run(settings, tokens[::-1], holes[::-1], list(range(6))[::-1])
    np.testing.assert_array_equal(together, turned[::-1])


def test_more_steps_than_missing_tokens_is_the_sequential_case():
    tokens, holes = batch(6)
    sequential = run(Settings(top_k=5), tokens, holes, list(range(6)))
    many = run(Settings(top_k=5, sample_steps=10 ** 6), tokens, holes, list(range(6)))
    np.testing.assert_array_equal(sequential, many)
    just = run(Settings(top_k=5, sample_steps=int(holes[3].sum())), tokens[3:4], holes[3:4], [3])
    np.testing.assert_array_equal(sequential[3:4], just)


@pytest.mark.parametrize('schedule', sampling.SCHEDULES)
def test_resampling_fills_the_least_likely_tokens_once_more(schedule):
    tokens, holes = batch(4)
    settings = {'top_k': 5, 'sample_steps': 6, 'schedule': schedule}
    rngs = [[generator_of(0, str(i), 1) for i in range(4)] for _ in range(2)]
    once = Sampler(toy_logits, SIDE, Settings(**settings))(tokens, holes, rngs[0])
    seen = []

    def watching(now: np.ndarray, masks: np.ndarray, where: np.ndarray) -> np.ndarray:
        seen.append((now.copy(), masks > 0))
        return toy_logits(now, masks, where)

    passes = []
    twice = Sampler(watching, SIDE, Settings(**settings, resample=0.25))(tokens, holes, rngs[1],
                                                                       lambda *p: passes.append(p))
    assert passes == [(i + 1, 8) for i in range(8)]  # 6, and a quarter of 6 rounded up
    sure = np.zeros((4, T))  # of the first round
    for (tokens_then, before), (_, after) in itertools.pairwise([*seen[:6], (None, np.zeros((4, T), bool))]):
        logits = toy_logits(tokens_then, before.astype(np.float32), np.broadcast_to(np.arange(T), (4, T)))
        for b, position in zip(*np.nonzero(before & ~after), strict=True):
            sure[b, position] = sampling.log_probability(logits[b, position], once[b].tokens[position])
    for b in range(4):
        opened = seen[6][1][b]
        assert opened.sum() == round(0.25 * holes[b].sum()) and not (opened & ~holes[b]).any()
        kept = holes[b] & ~opened
        if opened.any():
            assert sure[b, opened].max() <= sure[b, kept].min()
        np.testing.assert_array_equal(seen[6][0][b][kept], once[b].tokens[kept])  # the first round is the same
        np.testing.assert_array_equal(twice[b].tokens[~opened], once[b].tokens[~opened])
        if not holes[b].any():
            assert twice[b].log_likelihood == 0


def test_other_seeds_samples_and_pictures_have_other_noise():
    tokens, holes = batch(2, seed=3)
    rngs = [generator_of(0, 'a', 1), generator_of(1, 'a', 1), generator_of(0, 'a', 2), generator_of(0, 'b', 1)]
    drawn = {Sampler(toy_logits, SIDE, Settings())(tokens[1:], holes[1:], [rng])[0].tokens.tobytes() for rng in rngs}
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


def test_log_likelihood_is_that_of_the_tokens_drawn():
    tokens, holes = batch(3)
    total = np.zeros(3)

    def watching(now: np.ndarray, masks: np.ndarray, where: np.ndarray) -> np.ndarray:
        watching.calls.append((masks.copy(), toy_logits(now, masks, np.broadcast_to(np.arange(T), (3, T)))))
        return toy_logits(now, masks, where)
    watching.calls = []
    samples = Sampler(watching, SIDE, Settings(sample_steps=4, schedule='halton'))(
        tokens, holes, [generator_of(0, str(i), 1) for i in range(3)])
    masks = [m for m, _ in watching.calls] + [np.zeros((3, T))]
    for (before, logits), after in zip(watching.calls, masks[1:], strict=True):
        for b, position in zip(*np.nonzero((before > 0) & (after == 0)), strict=True):
            row = logits[b, position].astype(np.float64)
            total[b] += row[samples[b].tokens[position]] - np.log(np.exp(row).sum())
    np.testing.assert_allclose([s.log_likelihood for s in samples], total, rtol=1e-9)


def test_deterministic_mode_gives_the_expected_colour_whatever_the_seed():
    tokens, holes = batch(3)
    palette = np.random.default_rng(1).integers(0, 256, (VOCAB, 3)).astype(np.uint8)
    sampler = Sampler(toy_logits, SIDE, Settings(deterministic=True), palette)
    one, other = (sampler(tokens, holes, [generator_of(seed, 'a', 1)] * 3) for seed in (0, 1))
    masked = np.where(holes, 0, tokens)
    logits = toy_logits(masked, holes.astype(np.float32), np.broadcast_to(np.arange(T), (3, T))).astype(np.float64)
    weight = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for b in range(3):
        np.testing.assert_array_equal(one[b].tokens, other[b].tokens)
        np.testing.assert_allclose(one[b].expected[holes[b]], (weight[b] @ palette.astype(float))[holes[b]], rtol=1e-6)


def test_predictor_gives_the_same_for_any_number_of_rows_and_fills_up_short_batches():
    net = GPT(32, 16, 2, 2, 64, True)
    set_weights(net, made_up({p.name: p.shape for p in net.get_parameters()}, 3))
    net.set_train(False)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 32, (3, 64)).astype(np.int32)
    masks = (rng.random((3, 64)) < 0.4).astype(np.float32)
    where = rng.integers(0, 64, (3, 4)).astype(np.int32)
    full = net(ms.Tensor(tokens), ms.Tensor(masks)).asnumpy()
    for size in (1, 2, 3, 4):
        read = predict.Predictor(net, size, 64)(tokens, masks, where)
        np.testing.assert_allclose(read, np.take_along_axis(full, where[..., None].astype(np.int64), 1), atol=1e-5)


def tiny_model(rows: int) -> predict.Predictor:
    net = GPT(VOCAB, 16, 3, 2, T, True)
    set_weights(net, made_up({p.name: p.shape for p in net.get_parameters()}, 5))
    net.set_train(False)
    return predict.Predictor(net, rows, T)


@pytest.mark.parametrize('schedule', ['raster', 'halton'])
def test_one_pass_reads_the_positions_that_it_fills(schedule):
    tokens, holes = batch(2, seed=3)
    rngs = [[generator_of(0, str(i), 1) for i in range(2)] for _ in range(2)]
    model = tiny_model(2)

    def all_then_pick(tokens: np.ndarray, masks: np.ndarray, where: np.ndarray) -> np.ndarray:
        full = model(tokens, masks, np.broadcast_to(np.arange(T, dtype=np.int32), (2, T)))
        return np.take_along_axis(full, where[..., None].astype(np.int64), 1)
    settings = Settings(top_k=5, sample_steps=1, schedule=schedule)
    for one, other in zip(Sampler(model, SIDE, settings)(tokens, holes, rngs[0]),
                          Sampler(all_then_pick, SIDE, settings)(tokens, holes, rngs[1]), strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-3)


def test_rows_computed_alone_equal_the_full_forward_while_the_others_stay_as_they_were():
    rng = np.random.default_rng(1)
    model = tiny_model(3)
    tokens, holes = batch(2, seed=2)
    masks = holes.astype(np.float32)
    full = model(tokens, masks, np.broadcast_to(np.arange(T, dtype=np.int32), (2, T)))
    everything = np.stack([rng.permutation(T) for _ in range(2)]).astype(np.int32)
    some = np.stack([rng.permutation(T)[:7] for _ in range(2)]).astype(np.int32)
    for where in (everything, some):
        read = model.after(tokens, masks, where, 3)
        np.testing.assert_allclose(read, np.take_along_axis(full, where[:, -3:, None].astype(np.int64), 1), atol=1e-5)


@pytest.mark.parametrize(('schedule', 'steps'), [('raster', 0), ('halton', 6)])
@pytest.mark.parametrize(('window', 'refresh'), [(2 * SIDE - 1, 0), (1, 1)])
def test_reuse_is_exact_when_the_window_or_the_refresh_leaves_nothing_out(schedule, steps, window, refresh):
    tokens, holes = batch(2, seed=4)
    settings = {'top_k': 5, 'sample_steps': steps, 'schedule': schedule}
    rngs = [[generator_of(0, str(i), 1) for i in range(2)] for _ in range(2)]
    exact = Sampler(tiny_model(2), SIDE, Settings(**settings))(tokens, holes, rngs[0])
    model = tiny_model(2)
    reused = Sampler(model, SIDE, Settings(**settings, reuse_window=window, refresh=refresh), None,
                     model.after)(tokens, holes, rngs[1])
    for one, other in zip(exact, reused, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-3)


@pytest.mark.parametrize('steps', [0, 6])
def test_reuse_computes_windows_and_due_tokens_and_no_batch_changes_a_picture(steps):
    tokens, holes = batch(4)
    settings = Settings(top_k=5, sample_steps=steps, schedule='halton', reuse_window=3)
    seen = []

    def completed(rows: list[int]) -> list[np.ndarray]:
        model = tiny_model(len(rows))

        def watching(now: np.ndarray, masks: np.ndarray, where: np.ndarray, n_read: int) -> np.ndarray:
            seen.append((now.copy(), masks.copy(), where))
            return model.after(now, masks, where, n_read)

        rngs = [generator_of(0, str(i), 1) for i in rows]
        return [s.tokens for s in Sampler(model, SIDE, settings, None, watching)(tokens[rows], holes[rows], rngs)]

    together = completed([0, 1, 2, 3])
    assert seen[0][2].shape == (4, T) and all(where.shape[1] < T for _, _, where in seen[1:]) == (steps == 0)
    for (_, before, _), (_, after, where) in itertools.pairwise(seen):
        for b in range(4):
            assert len(set(where[b])) == len(where[b])
            for position in np.flatnonzero((before[b] > 0) & (after[b] == 0)):  # filled by the pass before
                row, column = divmod(int(position), SIDE)
                around = {r * SIDE + c for r in range(max(0, row - 1), min(SIDE, row + 2))
                          for c in range(max(0, column - 1), min(SIDE, column + 2))}
                assert around <= set(where[b].tolist())
    alone = [completed([i])[0] for i in range(4)]
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(np.array(together)[~holes], tokens[~holes])
