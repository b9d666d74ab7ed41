"""Priors for training, made from the original pictures where stage 1 has not sampled any."""
from __future__ import annotations

import cv2
import numpy as np

from ict.data import codebook, images


def degrade(rgb: np.ndarray, centres: np.ndarray, prior_size: int, bilinear: bool, random_degree: int,
            rng: np.random.Generator) -> np.ndarray:
    """A picture in palette colours at the prior's size: uint8 (H, W, 3) -> (prior_size, prior_size, 3).

    Args:
        bilinear: shrink as stage 1 does (``--use_degradation_2``), else by INTER_AREA.
        random_degree: each pixel gets a random one of its so many nearest colours, which imitates sampling errors.
    """
    if bilinear:
        small = images.shrink(rgb, prior_size)
    else:
        small = cv2.resize(rgb, (prior_size, prior_size), interpolation=cv2.INTER_AREA)
    near = codebook.neighbours(small, centres, random_degree)  # (P * P, n)
    chosen = near[np.arange(len(near)), rng.integers(near.shape[1], size=len(near))]
    return codebook.to_rgb(centres)[chosen].reshape(prior_size, prior_size, 3)
