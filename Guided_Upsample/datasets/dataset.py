"""Pictures, masks and priors as stage 2 sees them: training batches, validation, inference."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from Guided_Upsample.datasets.degradation import degrade
from ict.data import geometry, images
from ict.data.pairs import Listing
from ict.errors import UserError
from ict.training.epoch_sampler import EpochSampler
from ict.training.loader import HeldBackFiles, read_or_replace
from ict.training.mask_sources import MaskSource, RandomFile

PAIRED_FILE = 3  # the --mask_type of sampled priors: each picture's own mask file, see MASK_SOURCES
_BOUNDARY_REACH = 2.5  # pixels over which the weight at a hole's boundary falls to a third


def priors_of(folders: list[Path], pictures: Listing, i: int) -> list[Path]:
    """A picture's priors in stage 1's folders, one or more; a UserError where there are none."""
    own = [path for folder in folders if (path := folder / f'{pictures.id(i)}.png').is_file()]
    if not own:
        raise UserError(f'{folders[0].parent}: has no prior of {pictures.path(i)} ({pictures.id(i)}.png)')
    return own


@dataclass(frozen=True)
class ExampleConfig:
    """How examples are made; the options of the same names."""

    image_size: int
    prior_size: int
    prior_random_degree: int = 1
    use_degradation_2: bool = False


@dataclass(frozen=True)
class Source:
    """Stage 2's pictures, masks and priors.

    Attributes:
        prior_folders: where the priors that stage 1 sampled lie, or None: degraded pictures.
        centres: the palette, (V, 3) float32 in [-1, 1].
    """

    pictures: Listing
    mask_source: MaskSource
    prior_folders: list[Path] | None
    centres: np.ndarray
    config: ExampleConfig

    def training_example(self, number: int, rng: np.random.Generator, crop_scale: float,
                         failures: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """image (S, S, 3) uint8, prior (S, S, 3) uint8, hole (S, S) bool: cropped and flipped at random.

        A paired mask or a sampled prior belongs to the middle square, so these pictures are only flipped. An unreadable
        picture is replaced by another one, see ``read_or_replace``.
        """
        def read(i: int) -> tuple[images.Picture, np.ndarray | None, np.ndarray | None]:
            grey, prior = self.mask_source.of_picture(i), self.read_prior(i, rng)
            return images.load(self.pictures.path(i)), grey, prior

        picture, grey, prior = read_or_replace(len(self.pictures), number, rng, read, failures)
        height, width = geometry.size_of(picture.rgb)
        if grey is not None or prior is not None:
            box = geometry.centre_square(height, width)
        else:
            side = max(1, round(min(height, width) * rng.uniform(crop_scale, 1.0)))
            box = geometry.Box(int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1)), side, side)
        hole = self.mask_source.hole(grey, picture, self.config.image_size, rng, failures)
        image, prior = self._image_and_prior(picture.rgb, box, prior, rng)
        if rng.random() < 0.5:
            image, prior, hole = image[:, ::-1], prior[:, ::-1], hole[:, ::-1]
        return image, prior, hole

    def held_back_example(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Picture ``i`` as ``training_example``, but its middle square, always the same; a UserError for a bad file."""
        rng = np.random.default_rng([i, 3])
        failures: list[str] = []
        grey, prior = self.mask_source.of_picture(i), self.read_prior(i, rng)
        picture = images.load(self.pictures.path(i))
        hole = self.mask_source.hole(grey, picture, self.config.image_size, rng, failures)
        if failures:
            raise UserError(failures[0])
        box = geometry.centre_square(*geometry.size_of(picture.rgb))
        image, prior = self._image_and_prior(picture.rgb, box, prior, rng)
        return image, prior, hole

    def require_readable(self) -> None:
        """Read all files of a held-back part; a UserError names all that cannot be read."""
        held_back = HeldBackFiles()
        for i in tqdm(range(len(self.pictures)), desc='held-back pictures', unit='image', disable=None):
            held_back.read(images.load_rgb, self.pictures.path(i))
            held_back.read(self.mask_source.of_picture, i)
            held_back.read(self.read_prior, i, np.random.default_rng([i, 3]))
        if isinstance(self.mask_source, RandomFile):
            for i in range(len(self.mask_source.files)):
                held_back.read(self.mask_source.files.load, i)
        held_back.require_all()

    def read_prior(self, i: int, rng: np.random.Generator) -> np.ndarray | None:
        """One of a picture's sampled priors (P, P, 3) uint8; None when they are degraded pictures."""
        if self.prior_folders is None:
            return None
        own = priors_of(self.prior_folders, self.pictures, i)
        return images.load_rgb(own[int(rng.integers(len(own)))])

    def _image_and_prior(self, rgb: np.ndarray, box: geometry.Box, prior: np.ndarray | None,
                         rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A part of a picture and its prior, both (S, S, 3) uint8."""
        config = self.config
        rgb = np.ascontiguousarray(geometry.cut(rgb, box))
        if prior is None:
            prior = degrade(rgb, self.centres, config.prior_size, config.use_degradation_2,
                            config.prior_random_degree, rng)
        return (images.bicubic(rgb, config.image_size, config.image_size),
                images.bicubic(prior, config.image_size, config.image_size))


@dataclass(frozen=True)
class TrainingBatches:
    """Batches of stage 2: images (B, S, S, 3) uint8, priors (B, S, S, 3) uint8, holes (B, S, S) bool."""

    source: Source
    epoch_sampler: EpochSampler
    crop_scale: float

    def __call__(self, step: int) -> tuple[tuple[np.ndarray, ...], list[str]]:
        """The batch of a step, and lines of unreadable files."""
        failures: list[str] = []
        batch = [self.source.training_example(number, rng, self.crop_scale, failures)
                 for number, rng in self.epoch_sampler.examples(step)]
        return tuple(np.stack(part) for part in zip(*batch, strict=True)), failures


def as_network_input(image: np.ndarray, prior: np.ndarray, hole: np.ndarray) -> tuple[np.ndarray, ...]:
    """uint8 (B, S, S, 3), uint8 (B, S, S, 3), bool (B, S, S) -> float32 NCHW in [0, 1]; the mask has one channel."""
    def channels_first(pixels: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32) / np.float32(255)
    return channels_first(image), channels_first(prior), hole[:, None].astype(np.float32)


def boundary_weights(hole: np.ndarray, weight: float) -> np.ndarray:
    """How often each pixel counts in the L1 loss: bool (B, S, S) -> float32 (B, 1, S, S), 1 outside the hole.

    Inside ``1 + weight * exp(-(d - 1) / 2.5)``, d pixels from the nearest known one: what joins the known pixels can be
    told from them, and is what the eye sees.

    Args:
        weight: ``--rim_weight``.
    """
    if not weight:
        return np.ones((len(hole), 1, *hole.shape[1:]), np.float32)
    distances = np.stack([cv2.distanceTransform(one.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5) for one in hole])
    return np.where(hole, 1 + weight * np.exp(-(distances - 1) / _BOUNDARY_REACH), 1).astype(np.float32)[:, None]


def published_view(rgb: np.ndarray, grey: np.ndarray, geometry_name: str,
                   image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """What the published stage 2 sees: image (S, S, 3) uint8 and hole (S, S) bool, both resized bicubic.

    The image is its middle square; the mask is squashed whole with geometry 'published', else the image's like.
    Every mask pixel above 0 after the resize is hole.
    """
    if geometry_name != 'resize':
        rgb = geometry.cut(rgb, geometry.centre_square(*geometry.size_of(rgb)))
    if geometry_name == 'crop':
        grey = geometry.cut(grey, geometry.centre_square(*grey.shape))
    small = Image.fromarray(np.ascontiguousarray(grey)).resize((image_size, image_size), Image.Resampling.BICUBIC)
    return images.bicubic(np.ascontiguousarray(rgb), image_size, image_size), np.asarray(small) > 0
