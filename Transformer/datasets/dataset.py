"""Pictures and masks as tokens: training batches, fixed validation batches, and what inference sees."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ict.data import geometry, images, masks
from ict.data.codebook import Tokenizer
from ict.data.pairs import Listing
from ict.training.epoch_sampler import EpochSampler
from ict.training.loader import read_or_replace


@dataclass(frozen=True)
class TrainingBatches:
    """Batches of stage 1: a random square crop, flipped half the time, as tokens; a mask over them.

    Attributes:
        crop_scale: the crop's side is between this share of the shorter side and all of it.
        mask_files: masks to draw from, or None for random strokes.
    """

    pictures: Listing
    mask_files: Listing | None
    quantise: Tokenizer
    prior_size: int
    order: EpochSampler
    crop_scale: float

    def __call__(self, step: int) -> tuple[tuple[np.ndarray, ...], list[str]]:
        """tokens (B, T) int32 and mask (B, T) float32, 1 = missing, of a step."""
        failures: list[str] = []
        batch = [self._one(number, rng, failures) for number, _, rng in self.order.places(step)]
        tokens, hole = zip(*batch, strict=True)
        return (np.stack(tokens), np.stack(hole)), failures

    def _one(self, number: int, rng: np.random.Generator, failures: list[str]) -> tuple[np.ndarray, np.ndarray]:
        rgb = read_or_replace(len(self.pictures), number, rng,
                              lambda i: images.load_rgb(self.pictures.path(i)), failures)
        side = max(1, round(min(rgb.shape[:2]) * rng.uniform(self.crop_scale, 1.0)))
        top, left = rng.integers(rgb.shape[0] - side + 1), rng.integers(rgb.shape[1] - side + 1)
        rgb = rgb[top:top + side, left:left + side]
        if rng.random() < 0.5:
            rgb = rgb[:, ::-1]
        small = images.shrink(np.ascontiguousarray(rgb), self.prior_size)
        if self.mask_files is None:
            hole = masks.strokes(rng)
        else:
            grey = read_or_replace(len(self.mask_files), int(rng.integers(len(self.mask_files))), rng,
                                   lambda i: masks.load(self.mask_files.path(i)), failures)
            hole = grey > geometry.HOLE_LEVEL
        hole = geometry.touched(hole, self.prior_size, self.prior_size)
        return self.quantise(small).reshape(-1), hole.reshape(-1).astype(np.float32)


def validation_set(pictures: Listing, mask_files: Listing | None, mask_numbers: list[int] | None,
                   quantise: Tokenizer, prior_size: int) -> tuple[np.ndarray, np.ndarray]:
    """tokens (N, T) int32 and masks (N, T) float32 of held-back pictures, always the same.

    Each picture's middle square; its own mask, or strokes that depend on its place in the list alone.
    """
    tokens, holes = [], []
    for i in range(len(pictures)):
        rgb = images.load_rgb(pictures.path(i))
        square = geometry.cut(rgb, geometry.centre_square(*rgb.shape[:2]))
        tokens.append(quantise(images.shrink(square, prior_size)).reshape(-1))
        if mask_files is None:
            hole = masks.strokes(np.random.default_rng([i, 3]))
        else:
            _, hole = geometry.hole_in(masks.load(mask_files.path(mask_numbers[i])), *rgb.shape[:2], 'crop')
        holes.append(geometry.touched(hole, prior_size, prior_size).reshape(-1).astype(np.float32))
    return np.stack(tokens), np.stack(holes)


def published_view(rgb: np.ndarray, grey: np.ndarray, geometry_name: str,
                   prior_size: int) -> tuple[np.ndarray, np.ndarray]:
    """What the published stage 1 sees: image (P, P, 3) uint8 shrunk whole, hole (P, P) bool by NEAREST above a half.

    With geometry 'published' both are squashed; with 'crop' both are their middle squares.
    """
    if geometry_name == 'crop':
        rgb = geometry.cut(rgb, geometry.centre_square(*rgb.shape[:2]))
        grey = geometry.cut(grey, geometry.centre_square(*grey.shape))
    small = Image.fromarray(np.ascontiguousarray(grey)).resize((prior_size, prior_size), Image.NEAREST)
    return images.shrink(np.ascontiguousarray(rgb), prior_size), np.asarray(small) / 255 > 0.5
