"""How close a completion is to its original; pictures are float arrays in [0, 1], (H, W, 3) or (3, H, W)."""
from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

NAMES = ('psnr', 'mae', 'ssim', 'l1', 'l1_hole')


def psnr(result: np.ndarray, image: np.ndarray) -> float:
    """20 log10(255) - 10 log10(mse) of values x 255 truncated to integers, as published; inf for equal pictures."""
    difference = truncated(result).astype(np.float64) - truncated(image)
    mse = float((difference ** 2).mean())
    return math.inf if mse == 0 else 20 * math.log10(255) - 10 * math.log10(mse)


def mae(result: np.ndarray, image: np.ndarray) -> float:
    """sum |image - result| / sum image on the values in [0, 1], as published; 0 / 0 counts as 0."""
    difference = float(np.abs(image.astype(np.float64) - result).sum())
    total = float(image.astype(np.float64).sum())
    return difference / total if total else (0.0 if difference == 0 else math.inf)


def ssim(result: np.ndarray, image: np.ndarray) -> float:
    """Structural similarity of (H, W, 3) pictures truncated to 8 bits: 7 x 7 windows, mean over the channels."""
    from skimage.metrics import structural_similarity
    return float(structural_similarity(truncated(result), truncated(image), win_size=7, data_range=255,
                                       channel_axis=-1, gaussian_weights=False))


def l1(result: np.ndarray, image: np.ndarray) -> float:
    """Mean |image - result| in levels."""
    return float(np.abs(image.astype(np.float64) - result).mean() * 255.0)


def l1_in_hole(result: np.ndarray, image: np.ndarray, hole: np.ndarray) -> float:
    """Mean |image - result| in levels over the hole (H, W) bool of (H, W, 3) pictures; 0 without a hole."""
    if not hole.any():
        return 0.0
    return l1(result[hole], image[hole])


def all_of(result: np.ndarray, image: np.ndarray, hole: np.ndarray) -> dict[str, float]:
    """psnr, mae, ssim, l1 and l1_hole of (H, W, 3) pictures."""
    return dict(zip(NAMES, (psnr(result, image), mae(result, image), ssim(result, image), l1(result, image),
                            l1_in_hole(result, image, hole)), strict=True))


def diversity(samples: np.ndarray, hole: np.ndarray) -> dict[str, float]:
    """How much (n, S, S, 3) uint8 samples differ, mean over all pairs; nan for a single sample.

    Returns:
        diversity: mean absolute difference in the hole, in levels; diversity_ssim: 1 - SSIM of the whole pictures.
    """
    pairs = list(itertools.combinations(samples, 2))
    if not pairs:
        return {'diversity': math.nan, 'diversity_ssim': math.nan}
    return {'diversity': float(np.mean([l1_in_hole(a / 255, b / 255, hole) for a, b in pairs])),
            'diversity_ssim': float(np.mean([1 - ssim(a / 255, b / 255) for a, b in pairs]))}


def means(rows: Sequence[Mapping[str, Any]], names: Sequence[str] = NAMES) -> dict[str, float]:
    """The mean of each metric over several results.

    PSNR is infinite for a picture that equals its original: such rows are left out of its mean, which is inf only where
    no other row is left.
    """
    result = {}
    for name in names:
        values = [row[name] for row in rows]
        if name == 'psnr' and n_identical(rows) < len(rows):
            values = [value for value in values if value != math.inf]
        result[name] = float(np.mean(values))
    return result


def n_identical(rows: Sequence[Mapping[str, Any]]) -> int:
    """How many results equal their originals."""
    return sum(row['psnr'] == math.inf for row in rows)


def truncated(picture: np.ndarray) -> np.ndarray:
    """Values in [0, 1] as 8-bit levels: times 255, truncated as published."""
    return (picture * 255).astype(np.uint8)
