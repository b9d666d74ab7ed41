"""Which pictures a training step takes, whatever the number of workers, ranks or resumes."""
from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class EpochSampler:
    """Which picture is where in a training, whatever the number of workers, ranks or resumes.

    A step takes ``batch_size`` pictures on each of ``ranks`` ranks; every epoch has its own permutation, whose last
    step is filled up from its beginning, since a network is compiled for one size of batch.
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

    def places(self, step: int) -> list[tuple[int, int, np.random.Generator]]:
        """(picture number, place in the epoch, its random generator) for this rank's part of a step (from 0)."""
        epoch, within = divmod(step, self.steps_per_epoch)
        permutation = _permutation(self.n_pictures, self.seed, epoch)
        first = within * self.pictures_per_step + self.rank * self.batch_size
        return [(int(permutation[place % self.n_pictures]), place, np.random.default_rng([self.seed, 2, epoch, place]))
                for place in range(first, first + self.batch_size)]


@lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, 1, epoch]).permutation(n)
