"""Pictures, masks and priors as stage 2 sees them: training batches, validation, inference."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from Guided_Upsample.datasets.degradation import degrade
from ict.data import geometry, images, masks
from ict.data.pairs import Listing
from ict.errors import UserError
from ict.training.epoch_sampler import EpochSampler
from ict.training.loader import read_or_replace

_RIM = 2.5  # pixels over which a rim's weight falls to a third
STROKES, BLOCK, RANDOM_FILE, PAIRED_FILE = 0, 1, 2, 3  # --mask_type; strokes are for validation without masks


def priors_of(folders: list[Path], pictures: Listing, i: int) -> list[Path]:
    """A picture's priors in stage 1's folders, one or more.

    Raises:
        UserError: there are none.
    """
    own = [path for folder in folders if (path := folder / f'{pictures.id(i)}.png').is_file()]
    if not own:
        raise UserError(f'{folders[0].parent}: has no prior of {pictures.path(i)} ({pictures.id(i)}.png)')
    return own


@dataclass(frozen=True)
class Source:
    """Where stage 2's pictures, masks and priors come from.

    Attributes:
        mask_numbers: for PAIRED_FILE, each picture's mask.
        prior_folders: where the priors that stage 1 sampled lie, or None: degraded pictures.
    """

    pictures: Listing
    mask_type: int
    mask_files: Listing | None
    mask_numbers: list[int] | None
    prior_folders: list[Path] | None
    centres: np.ndarray
    image_size: int
    prior_size: int
    prior_random_degree: int
    use_degradation_2: bool

    def example(self, number: int, rng: np.random.Generator, crop_scale: float, flips: bool,
                failures: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """image (S, S, 3) uint8, prior (S, S, 3) uint8, hole (S, S) bool.

        A paired mask or a sampled prior belongs to the middle square, so these pictures are not cropped at random.
        """
        fixed = self.mask_type == PAIRED_FILE or self.prior_folders is not None

        def read(i: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
            grey = masks.load(self.mask_files.path(self.mask_numbers[i])) if self.mask_type == PAIRED_FILE else None
            chosen = None
            if self.prior_folders is not None:
                own = priors_of(self.prior_folders, self.pictures, i)
                chosen = images.load_rgb(own[int(rng.integers(len(own)))])
            return images.load_rgb(self.pictures.path(i)), grey, chosen

        rgb, grey, prior = read_or_replace(len(self.pictures), number, rng, read, failures)
        if fixed or not flips:
            box = geometry.centre_square(*rgb.shape[:2])
        else:
            side = max(1, round(min(rgb.shape[:2]) * rng.uniform(crop_scale, 1.0)))
            box = geometry.Box(int(rng.integers(rgb.shape[0] - side + 1)), int(rng.integers(rgb.shape[1] - side + 1)),
                             side, side)
        hole = self._hole(rgb, grey, rng, failures)
        rgb = np.ascontiguousarray(geometry.cut(rgb, box))
        if prior is None:
            prior = degrade(rgb, self.centres, self.prior_size, self.use_degradation_2, self.prior_random_degree, rng)
        image = images.bicubic(rgb, self.image_size, self.image_size)
        prior = images.bicubic(prior, self.image_size, self.image_size)
        if flips and rng.random() < 0.5:
            image, prior, hole = image[:, ::-1], prior[:, ::-1], hole[:, ::-1]
        return image, prior, hole

    def _hole(self, rgb: np.ndarray, grey: np.ndarray | None, rng: np.random.Generator,
              failures: list[str]) -> np.ndarray:
        if self.mask_type == BLOCK:
            return masks.block(rng, self.image_size)
        if self.mask_type == STROKES:
            hole = masks.strokes(rng)
        elif self.mask_type == RANDOM_FILE:
            grey = read_or_replace(len(self.mask_files), int(rng.integers(len(self.mask_files))), rng,
                                   lambda i: masks.load(self.mask_files.path(i)), failures)
            hole = grey > geometry.HOLE_LEVEL
        else:
            _, hole = geometry.hole_in(grey, *rgb.shape[:2], 'crop')
        return geometry.touched(hole, self.image_size, self.image_size)


@dataclass(frozen=True)
class TrainingBatches:
    """Batches of stage 2: images (B, S, S, 3) uint8, priors (B, S, S, 3) uint8, holes (B, S, S) bool."""

    source: Source
    order: EpochSampler
    crop_scale: float

    def __call__(self, step: int) -> tuple[tuple[np.ndarray, ...], list[str]]:
        failures: list[str] = []
        batch = [self.source.example(number, rng, self.crop_scale, True, failures)
                 for number, _, rng in self.order.places(step)]
        return tuple(np.stack(part) for part in zip(*batch, strict=True)), failures


def as_network_input(image: np.ndarray, prior: np.ndarray, hole: np.ndarray) -> tuple[np.ndarray, ...]:
    """uint8 (B, S, S, 3), uint8 (B, S, S, 3), bool (B, S, S) -> float32 NCHW in [0, 1]; the mask has one channel."""
    def channels_first(pixels: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32) / np.float32(255)
    return channels_first(image), channels_first(prior), hole[:, None].astype(np.float32)


def rim_weights(hole: np.ndarray, weight: float) -> np.ndarray:
    """How often each pixel counts: bool (B, S, S) -> float32 (B, 1, S, S), 1 outside the hole.

    Inside ``1 + weight * exp(-(d - 1) / 2.5)``, d pixels from the nearest known one: what joins the known pixels can be
    told from them, and is what the eye sees.
    """
    if not weight:
        return np.ones((len(hole), 1, *hole.shape[1:]), np.float32)
    distances = np.stack([cv2.distanceTransform(one.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5) for one in hole])
    return np.where(hole, 1 + weight * np.exp(-(distances - 1) / _RIM), 1).astype(np.float32)[:, None]


def published_view(rgb: np.ndarray, grey: np.ndarray, geometry_name: str,
                   image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """What the published stage 2 sees: image (S, S, 3) uint8 and hole (S, S) bool, both resized bicubic.

    The image is its middle square; the mask is squashed whole with geometry 'published', else the image's like.
    Every mask pixel above 0 after the resize is hole.
    """
    if geometry_name != 'resize':
        rgb = geometry.cut(rgb, geometry.centre_square(*rgb.shape[:2]))
    if geometry_name == 'crop':
        grey = geometry.cut(grey, geometry.centre_square(*grey.shape))
    small = Image.fromarray(np.ascontiguousarray(grey)).resize((image_size, image_size), Image.BICUBIC)
    return images.bicubic(np.ascontiguousarray(rgb), image_size, image_size), np.asarray(small) > 0
