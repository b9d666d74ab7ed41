"""Pictures and masks as tokens: training batches, fixed validation batches, and what inference sees."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from tqdm import tqdm

from ict.data import geometry, images
from ict.data.codebook import Tokenizer
from ict.data.pairs import Listing
from ict.training.epoch_sampler import EpochSampler
from ict.training.loader import HeldBackFiles, read_or_replace
from ict.training.mask_sources import MaskSource


@dataclass(frozen=True)
class TrainingBatches:
    """Batches of stage 1: a random square crop, flipped half the time, as tokens; a mask over them.

    Attributes:
        crop_scale: the crop's side is between this share of the shorter side and all of it.
    """

    pictures: Listing
    mask_source: MaskSource
    tokenizer: Tokenizer
    prior_size: int
    epoch_sampler: EpochSampler
    crop_scale: float

    def __call__(self, step: int) -> tuple[tuple[np.ndarray, ...], list[str]]:
        """(tokens (B, T) int32, masks (B, T) float32 with 1 = missing) of a step, and lines of unreadable files."""
        failures: list[str] = []
        batch = [self._example(number, rng, failures) for number, rng in self.epoch_sampler.examples(step)]
        tokens, holes = zip(*batch, strict=True)
        return (np.stack(tokens), np.stack(holes)), failures

    def _example(self, number: int, rng: np.random.Generator,
                 failures: list[str]) -> tuple[np.ndarray, np.ndarray]:
        # A random crop of the picture.
        picture = read_or_replace(len(self.pictures), number, rng,
                                  lambda i: images.load(self.pictures.path(i)), failures)
        rgb = picture.rgb
        side = max(1, round(min(rgb.shape[:2]) * rng.uniform(self.crop_scale, 1.0)))
        top, left = rng.integers(rgb.shape[0] - side + 1), rng.integers(rgb.shape[1] - side + 1)
        rgb = rgb[top:top + side, left:left + side]
        if rng.random() < 0.5:
            rgb = rgb[:, ::-1]
        small = images.shrink(np.ascontiguousarray(rgb), self.prior_size)

        # A random mask.
        hole = self.mask_source.hole(None, picture, self.prior_size, rng, failures)
        return self.tokenizer(small).reshape(-1), hole.reshape(-1).astype(np.float32)


def validation_set(pictures: Listing, mask_source: MaskSource, tokenizer: Tokenizer,
                   prior_size: int) -> tuple[np.ndarray, np.ndarray]:
    """tokens (N, T) int32 and masks (N, T) float32 of held-back pictures, always the same.

    Each picture's middle square with its own mask, or with one that depends on its number alone.

    Raises:
        UserError: names the files that cannot be read, all together.
    """
    tokens, holes, held_back = [], [], HeldBackFiles()
    for i in tqdm(range(len(pictures)), desc='held-back pictures', unit='image', disable=None):
        picture = held_back.read(images.load, pictures.path(i))
        grey = held_back.read(mask_source.of_picture, i)
        if held_back.failures:
            continue
        square = geometry.cut(picture.rgb, geometry.centre_square(*geometry.size_of(picture.rgb)))
        tokens.append(tokenizer(images.shrink(square, prior_size)).reshape(-1))
        hole = mask_source.hole(grey, picture, prior_size, np.random.default_rng([i, 3]), [])
        holes.append(hole.reshape(-1).astype(np.float32))
    held_back.require_all()
    return np.stack(tokens), np.stack(holes)


def published_view(rgb: np.ndarray, grey: np.ndarray, geometry_name: str,
                   prior_size: int) -> tuple[np.ndarray, np.ndarray]:
    """What the published stage 1 sees: image (P, P, 3) uint8 shrunk whole, hole (P, P) bool by NEAREST above a half.

    With geometry 'published' both are squashed; with 'crop' both are their middle squares.
    """
    if geometry_name == 'crop':
        rgb = geometry.cut(rgb, geometry.centre_square(*geometry.size_of(rgb)))
        grey = geometry.cut(grey, geometry.centre_square(*grey.shape))
    small = Image.fromarray(np.ascontiguousarray(grey)).resize((prior_size, prior_size), Image.Resampling.NEAREST)
    return images.shrink(np.ascontiguousarray(rgb), prior_size), np.asarray(small) / 255 > 0.5
