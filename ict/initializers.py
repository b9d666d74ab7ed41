"""Initial weights that a seed fixes."""
from __future__ import annotations

import numpy as np
from mindspore.common.initializer import Initializer


class Normal(Initializer):
    """Normal(0, sigma) drawn from a NumPy generator, one parameter after another."""

    def __init__(self, rng: np.random.Generator, sigma: float) -> None:
        super().__init__()
        self.rng, self.sigma = rng, sigma

    def _initialize(self, arr: np.ndarray) -> None:
        arr[:] = self.rng.standard_normal(arr.shape, dtype=np.float32) * np.float32(self.sigma)
