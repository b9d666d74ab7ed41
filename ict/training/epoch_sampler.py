"""The order in which a training sees its pictures."""
from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class EpochSampler:
    """Which pictures a training step takes; the same for any number of workers, ranks and resumes.

    A step takes ``batch_size`` pictures on each of ``ranks`` ranks. Every epoch has its own permutation; its last step
    is filled up from its beginning, since a network is compiled for one batch size.
    """

    n_pictures: int
    batch_size: int
    seed: int
    rank: int = 0
    ranks: int = 1

    @property
    def pictures_per_step(self) -> int:
        return self.batch_size * self.ranks

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.n_pictures // self.pictures_per_step)

    def examples(self, step: int) -> list[tuple[int, np.random.Generator]]:
        """(picture number, random generator of its crop and mask) for this rank's part of a step (from 0)."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        permutation = _permutation(self.n_pictures, self.seed, epoch)
        first = step_in_epoch * self.pictures_per_step + self.rank * self.batch_size
        return [(int(permutation[i % self.n_pictures]), np.random.default_rng([self.seed, 2, epoch, i]))
                for i in range(first, first + self.batch_size)]


@lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, 1, epoch]).permutation(n)
