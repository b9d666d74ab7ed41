"""Scoring of one picture's completions beside OpenCV's inpainting, for ict/evaluate.py.

PSNR, MAE, SSIM and L1 of single samples, of the best one and of the deterministic completion are stage 2's own
(metrics.csv): MAE and L1 of the float values, as published. Those of the mean picture and of OpenCV are of 8-bit
pictures, and so is the perceptual distance of every method. The mean picture is the mean of the result files, whose
values stage 2 has truncated, so it is up to one level too dark. With geometry 'hole' all pictures are scored at their
own size, because holes far apart have no smaller picture in common, and all metrics are of 8-bit pictures.
"""
from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ict.data import encode, geometry, images
from ict.errors import UserError, require
from ict.runs import inputs, metrics, perceptual

SAMPLES, DETERMINISTIC = 'samples', 'deterministic'  # run.py's results
ORIGINALS, RESULTS, MEAN, TELEA, NAVIER_STOKES = 'originals', 'results', 'mean', 'telea', 'navier_stokes'  # ours
SINGLE = 'single sample'  # a method's name
OPENCV_RADIUS = 3

Rows = list[dict[str, Any]]
Metrics = dict[str, float]
ResultMetrics = dict[tuple[str, int], Metrics]  # by picture and number of the result, from 0


@dataclass(frozen=True)
class Evaluation:
    """What is scored, and with what.

    Attributes:
        output_dir: where tables and scored pictures go, and the completions lie.
        pictures: those to be completed, with their masks.
        view: how they are seen.
        sample_num: samples of each picture.
        features: the network of the perceptual distance, None without one.
    """

    output_dir: Path
    pictures: inputs.Inputs
    view: inputs.View
    sample_num: int
    features: perceptual.Features | None = None

    @property
    def at_own_size(self) -> bool:
        """Whether pictures are scored at their own size."""
        return self.view.geometry == 'hole'

    def path(self, folder: str, picture: str, k: int = 0) -> Path:
        """Where result ``k`` of a picture lies."""
        return self.output_dir / folder / f'{picture}_{k}.png'

    def load(self, path: Path) -> np.ndarray:
        """A result: (H, W, 3) uint8."""
        return images.load_rgb(path, self.pictures.flags.max_pixels if self.at_own_size else images.MAX_PIXELS)

    def scored_paths(self, picture: str) -> list[Path]:
        """All files that an outside scorer gets of a picture."""
        return [*(self.path(folder, picture, k) for folder in (ORIGINALS, RESULTS) for k in range(self.sample_num)),
                *(self.path(folder, picture) for folder in (MEAN, TELEA, NAVIER_STOKES))]


def scored_view(rgb: np.ndarray, grey: np.ndarray, geometry_name: str, size: int) -> geometry.ScoredView:
    """A picture (H, W, 3) uint8 and its mask (h, w) uint8 at the model's size, known pixels as stage 2 keeps them.

    With geometry 'hole' they keep the picture's own size.
    """
    if geometry_name == 'hole':
        hole = geometry.touched(grey > geometry.HOLE_LEVEL, *geometry.size_of(rgb))
        return geometry.ScoredView(np.where(hole[..., None], np.uint8(0), rgb), hole, rgb)
    frame, full_hole = geometry.hole_in(grey, *geometry.size_of(rgb), geometry_name)
    return geometry.scored_view(geometry.cut(rgb, frame), full_hole, size)


def opencv(image: np.ndarray, hole: np.ndarray, method: int) -> np.ndarray:
    """cv2.inpaint (INPAINT_TELEA or INPAINT_NS) of (S, S, 3) uint8 in a hole (S, S) bool; no pixel in it is used."""
    known = np.where(hole[..., None], np.uint8(0), image)  # at a boundary OpenCV reads what is under the mask
    return cv2.inpaint(known, hole.astype(np.uint8), OPENCV_RADIUS, method)


def mean_picture(samples: np.ndarray) -> np.ndarray:
    """The pixelwise mean of (n, S, S, 3) uint8, rounded to levels: (S, S, 3) uint8."""
    return np.rint(samples.mean(axis=0, dtype=np.float64)).astype(np.uint8)


def perceptual_metric(features: perceptual.Features | None, original: np.ndarray) -> Callable[[np.ndarray], Metrics]:
    """A function that gives a picture's perceptual distance from ``original``, both (S, S, 3) uint8; {} without one."""
    if features is None:
        return lambda picture: {}
    reference = features(original)
    return lambda picture: {'perceptual': perceptual.distance(features(picture), reference)}


def rows_of(samples: Sequence[Metrics], sample_diversity: Metrics, deterministic: Metrics,
            others: dict[str, Metrics]) -> Rows:
    """A row for each method on one picture: the method, its metrics, and its diversity (nan where it has none).

    Args:
        samples: metrics of each sample.
        others: metrics of other completions by method.
    """
    names = tuple(deterministic)
    methods = {SINGLE: metrics.means(samples, names) | sample_diversity,
               f'best of {len(samples)} by PSNR': max(samples, key=lambda sample: sample['psnr']),
               'deterministic': deterministic, **others}
    return [{'method': method, **{name: found.get(name, math.nan) for name in (*names, *sample_diversity)}}
            for method, found in methods.items()]


def read_samples(evaluation: Evaluation, picture: str) -> np.ndarray:
    """The samples of a picture: (n, H, W, 3) uint8; a UserError where one is missing or of another size."""
    samples: list[np.ndarray] = []
    for k in range(evaluation.sample_num):
        path = evaluation.path(SAMPLES, picture, k)
        samples.append(evaluation.load(path))
        height, width = geometry.size_of(samples[0])
        require(geometry.size_of(samples[k]) == (height, width), f'{path}: is not {width} x {height} pixels like the '
                                                                 f'others; use --overwrite')
    return np.stack(samples)


def score_picture(evaluation: Evaluation, i: int, sampled: ResultMetrics, deterministic: ResultMetrics) -> Rows:
    """Write the scored files of picture ``i``; its rows. ``sampled`` and ``deterministic`` are stage 2's metrics."""
    pictures, n = evaluation.pictures, evaluation.sample_num
    picture = pictures.id(i)

    # What stage 2 has made
    for folder, made, count in ((SAMPLES, sampled, n), (DETERMINISTIC, deterministic, 1)):
        require(all((picture, k) in made for k in range(count)),
                f'{pictures.pictures.path(i)}: {evaluation.output_dir / folder} has no result of it')
    samples = read_samples(evaluation, picture)  # (n, H, W, 3)
    expected = evaluation.load(evaluation.path(DETERMINISTIC, picture))

    # What it is compared with
    loaded, grey = pictures.read(i, evaluation.view)
    seen = scored_view(loaded.rgb, grey, evaluation.view.geometry, samples.shape[1])
    require(bool(seen.hole.any()), f'{pictures.mask_path(i)}: nothing to score in the part of '
                                   f'{pictures.pictures.path(i)} that is completed')
    require(samples[0].shape == expected.shape == seen.original.shape,
            f'{evaluation.path(SAMPLES, picture)}: is not of the size that its picture is scored at; use --overwrite')
    others = {MEAN: mean_picture(samples), TELEA: opencv(seen.image, seen.hole, cv2.INPAINT_TELEA),
              NAVIER_STOKES: opencv(seen.image, seen.hole, cv2.INPAINT_NS)}

    # Metrics
    def all_of(result: np.ndarray) -> Metrics:
        return metrics.all_of(result / 255, seen.original / 255, seen.hole)

    own, own_expected = [sampled[picture, k] for k in range(n)], deterministic[picture, 0]
    if evaluation.at_own_size:
        own, own_expected = [all_of(sample) for sample in samples], all_of(expected)
    perceptual_of = perceptual_metric(evaluation.features, seen.original)
    titles = {MEAN: f'mean of {n} samples', TELEA: 'OpenCV, Telea', NAVIER_STOKES: 'OpenCV, Navier-Stokes'}
    rows = rows_of([one | perceptual_of(sample) for one, sample in zip(own, samples, strict=True)],
                   metrics.diversity(samples, seen.hole), own_expected | perceptual_of(expected),
                   {titles[name]: all_of(other) | perceptual_of(other) for name, other in others.items()})

    # Files for an outside scorer
    for k in range(n):
        encode.write(evaluation.path(ORIGINALS, picture, k), seen.original)
        encode.write(evaluation.path(RESULTS, picture, k), samples[k])
    for folder, other in others.items():
        encode.write(evaluation.path(folder, picture), other)
    return [{'id': picture, 'hole': float(seen.hole.mean()), **row} for row in rows]


def read_metrics(path: Path) -> ResultMetrics:
    """Stage 2's metrics.csv; a UserError where it is no such table."""
    try:
        with open(path, encoding='utf-8', errors='surrogateescape', newline='') as stream:
            return {(row['id'], int(row['result'])): {name: float(row[name]) for name in metrics.NAMES}
                    for row in csv.DictReader(stream)}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f'{path}: not a metrics.csv of Guided_Upsample/infer.py ({error}); use --overwrite') from None
