"""The order of the pictures and the learning rate of each step."""
from __future__ import annotations

import math

import numpy as np

from ict.training.epoch_sampler import EpochSampler
from ict.training.schedule import Schedule


def test_schedules_by_hand():
    warm = [Schedule(1.0, 'constant', 4, 100).at(s) for s in range(6)]
    np.testing.assert_allclose(warm, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
    cosine = [Schedule(2.0, 'cosine', 0, 4).at(s) for s in range(5)]
    half = math.cos(math.pi / 4)
    np.testing.assert_allclose(cosine, [2.0, 1 + half, 1.0, 1 - half, 0.0], atol=1e-12)
    both = [Schedule(1.0, 'cosine', 2, 6).at(s) for s in (0, 1, 2, 4, 6)]
    np.testing.assert_allclose(both, [0.5, 1.0, 1.0, 0.5, 0.0], atol=1e-12)


def test_order_is_a_permutation_every_epoch_and_the_same_for_any_ranks():
    alone = EpochSampler(10, 4, seed=3)
    seen = [n for step in range(alone.steps_per_epoch) for n, _ in alone.examples(step)]
    assert len(seen) == 12 and set(seen) == set(range(10))  # filled up, since a network is compiled for four
    assert EpochSampler(1281167, 32, 0).steps_per_epoch == 40037  # the published log's
    assert [n for n, _ in alone.examples(0)] != [n for n, _ in alone.examples(alone.steps_per_epoch)]
    for step in range(7):
        whole = [(n, rng.random()) for n, rng in alone.examples(step)]
        split = [(n, rng.random()) for r in range(2) for n, rng in EpochSampler(10, 2, 3, r, 2).examples(step)]
        assert whole == split
