"""Where the holes of training pictures come from."""
from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ict.data import geometry, images, masks, pairs
from ict.device import parallel
from ict.errors import UserError
from ict.log import log
from ict.options import NOT_GIVEN, Given
from ict.training.loader import read_or_replace

_MEASURED, _SUSPICIOUS = 200, 0.7  # masks whose holes are measured; a line when they cover more on average


@dataclass(frozen=True)
class MaskFiles:
    """Mask files, and how they are read.

    Attributes:
        invert: black is the hole in the files (``--invert_mask``).
        dilate: the hole is grown by so many mask pixels (``--dilate``).
    """

    listing: pairs.Listing
    invert: bool = False
    dilate: int = 0

    def __len__(self) -> int:
        return len(self.listing)

    def load(self, i: int) -> np.ndarray:
        """Mask ``i`` as grey levels (h, w) uint8, 255 = hole; a UserError where it cannot be read."""
        return masks.load(self.listing.path(i), invert=self.invert, dilate=self.dilate)

    def check_polarity(self, option: str) -> None:
        """A line when the holes are so large on average that black and white may be confused."""
        shares = []
        for i in np.unique(np.linspace(0, len(self) - 1, _MEASURED).astype(int)):
            with suppress(UserError):  # reported when a training needs it
                shares.append((self.load(int(i)) > geometry.HOLE_LEVEL).mean())
        if shares and np.mean(shares) > _SUSPICIOUS:
            meaning, remedy = ('black', 'leave --invert_mask out if white') if self.invert else \
                ('white', 'add --invert_mask if black')
            log(f'{option}: the hole covers {np.mean(shares):.0%} of a picture on average ({len(shares)} read); masks '
                f'are {meaning} = hole; {remedy} is the hole')


class MaskSource:
    """Makes the holes of training pictures: ``draw`` at random, or ``of_picture`` reads those that belong to pictures.

    Args:
        files: mask files, for a source that reads some.
        pictures: the pictures that they are for.
    """

    help = ''  # for ``--mask_type``
    reads_files = False

    def __init__(self, files: MaskFiles | None = None, pictures: pairs.Listing | None = None) -> None:
        self.files = files

    def digest(self) -> str:
        """What tells the mask files from others, '' without any."""
        return self.files.listing.digest() if self.files is not None else ''

    def __len__(self) -> int:
        """How many mask files there are."""
        return len(self.files) if self.files is not None else 0

    def of_picture(self, i: int) -> np.ndarray | None:
        """Grey levels (h, w) uint8 of the mask that belongs to picture ``i``; None: its hole is drawn."""
        return None

    def draw(self, size: int, rng: np.random.Generator, failures: list[str]) -> np.ndarray:
        """A hole (h, w) bool of any size; lines about unreadable files are appended to ``failures``.

        Args:
            size: side of the square to which the caller reduces the hole.
        """
        raise NotImplementedError

    def hole(self, grey: np.ndarray | None, picture: images.Picture, size: int, rng: np.random.Generator,
             failures: list[str]) -> np.ndarray:
        """The hole (size, size) bool of a square crop: pixels that the drawn or given hole touches.

        Args:
            grey: what ``of_picture`` gave, of which the middle square is taken; None: the hole is drawn.
            picture: the whole one.
            size, rng, failures: as for ``draw``.
        """
        if grey is None:
            return geometry.touched(self.draw(size, rng, failures), size, size)
        height, width = geometry.size_of(picture.rgb)
        fitted = masks.fitted(grey, height, width, picture.orientation)
        return geometry.touched(geometry.hole_in(fitted, height, width, 'crop')[1], size, size)


class Strokes(MaskSource):
    help = 'free-form strokes'

    def draw(self, size: int, rng: np.random.Generator, failures: list[str]) -> np.ndarray:
        return masks.strokes(rng)


class Block(MaskSource):
    help = 'random square block of half the side'

    def draw(self, size: int, rng: np.random.Generator, failures: list[str]) -> np.ndarray:
        return masks.block(rng, size)


class RandomFile(MaskSource):
    help = 'random file of --mask'
    reads_files = True
    files: MaskFiles

    def draw(self, size: int, rng: np.random.Generator, failures: list[str]) -> np.ndarray:
        first = int(rng.integers(len(self.files)))
        return read_or_replace(len(self.files), first, rng, self.files.load, failures) > geometry.HOLE_LEVEL


class PairedFile(MaskSource):
    help = "the image's own file of --mask"
    reads_files = True
    files: MaskFiles

    def __init__(self, files: MaskFiles, pictures: pairs.Listing) -> None:
        super().__init__(files)
        self.numbers = pairs.masks_for(pictures, files.listing)

    def path(self, i: int) -> Path:
        """The mask file of picture ``i``."""
        return self.files.listing.path(self.numbers[i])

    def of_picture(self, i: int) -> np.ndarray:
        return self.files.load(self.numbers[i])


# --mask_type; a mask source is a class above and an entry here.
MASK_SOURCES: dict[int, type[MaskSource]] = {1: Block, 2: RandomFile, 3: PairedFile}


@dataclass(frozen=True)
class PicturePaths:
    """Where a training's pictures and masks are.

    Attributes:
        output_dir: is not searched.
        masks: for a ``mask_type`` that reads files.
        cache: whether the listing of the pictures is kept in ``output_dir``.
        invert_mask, dilate: see ``MaskFiles``.
    """

    pictures: Given
    mask_type: type[MaskSource]
    output_dir: Path
    masks: Given = NOT_GIVEN
    cache: bool = False
    invert_mask: bool = False
    dilate: int = 0

    def find(self) -> tuple[pairs.Listing, MaskSource]:
        """The pictures and the source of their holes; a file that is both is a mask."""
        pictures = pairs.listing(*self.pictures, without=[self.output_dir], unique=False, writes=parallel.is_writer(),
                                 cache=self.output_dir / 'files.npz' if self.cache else None)
        if not self.mask_type.reads_files:
            return pictures, self.mask_type(None, pictures)
        mask_files = MaskFiles(pairs.listing(*self.masks, without=[self.output_dir], unique=False), self.invert_mask,
                               self.dilate)
        if parallel.is_writer():
            mask_files.check_polarity(self.masks.option)
        pictures, masks_alone = pairs.apart(pictures, mask_files.listing)
        return pictures, self.mask_type(replace(mask_files, listing=masks_alone), pictures)
