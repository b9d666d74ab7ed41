"""Where the holes of training pictures come from."""
from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ict.data import geometry, masks, pairs
from ict.device import parallel
from ict.errors import UserError
from ict.log import log
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

    def digest(self) -> str:
        """See ``Listing.digest``."""
        return self.listing.digest()

    def load(self, i: int) -> np.ndarray:
        """Mask ``i`` as grey levels (h, w) uint8, 255 = hole.

        Raises:
            UserError: it cannot be read.
        """
        return masks.load(self.listing.path(i), invert=self.invert, dilate=self.dilate)

    def mean_hole(self, most: int) -> tuple[float, int]:
        """Mean share of the hole in up to ``most`` files, evenly spread, and how many of these can be read."""
        shares = []
        for i in np.unique(np.linspace(0, len(self) - 1, most).astype(int)):
            try:
                shares.append((self.load(int(i)) > geometry.HOLE_LEVEL).mean())
            except UserError:  # reported when a training needs it
                continue
        return float(np.mean(shares)) if shares else 0.0, len(shares)


def find(path: str, option: str, output_dir: Path, invert: bool, dilate: int) -> MaskFiles:
    """The mask files of an option; a line when their holes are so large that black and white may be confused.

    Args:
        output_dir: is not searched.

    Raises:
        UserError: see ``pairs.listing``.
    """
    files = MaskFiles(pairs.listing(path, option, without=[output_dir], unique=False), invert, dilate)
    if parallel.is_writer():
        hole, count = files.mean_hole(_MEASURED)
        if hole > _SUSPICIOUS:
            meaning, remedy = ('black', 'leave --invert_mask out if white') if invert else \
                ('white', 'add --invert_mask if black')
            log(f'{option}: the hole covers {hole:.0%} of a picture on average ({count} read); masks are '
                f'{meaning} = hole; {remedy} is the hole')
    return files


def apart(pictures: pairs.Listing, files: MaskFiles | None) -> tuple[pairs.Listing, MaskFiles | None]:
    """Pictures and masks without files that are both; see ``pairs.apart``."""
    if files is None:
        return pictures, None
    pictures, listing = pairs.apart(pictures, files.listing)
    return pictures, replace(files, listing=listing)


class MaskSource:
    """Makes the holes of training pictures.

    Args:
        files: mask files, for a source that reads some.
        pictures: the pictures that they are for.
    """

    help = ''  # for ``--mask_type``
    reads_files = False

    def __init__(self, files: MaskFiles | None = None, pictures: pairs.Listing | None = None) -> None:
        self.files = files

    def of_picture(self, i: int) -> np.ndarray | None:
        """Grey levels (h, w) uint8 of the mask that belongs to picture ``i``; None: its hole is drawn.

        Raises:
            UserError: the mask cannot be read.
        """
        return None

    def hole(self, grey: np.ndarray | None, picture: tuple[int, int], size: int, rng: np.random.Generator,
             failures: list[str]) -> np.ndarray:
        """The hole (h, w) bool of a square part of a picture, which is then resized to (size, size).

        Args:
            grey: what ``of_picture`` gave; its hole is that of the picture's middle square.
            picture: height and width.
            failures: lines of files that could not be read are added here.
        """
        raise NotImplementedError


class Strokes(MaskSource):
    """Free-form strokes."""

    help = 'free-form strokes'

    def hole(self, grey: np.ndarray | None, picture: tuple[int, int], size: int, rng: np.random.Generator,
             failures: list[str]) -> np.ndarray:
        return masks.strokes(rng)


class Block(MaskSource):
    """A square block."""

    help = 'random square block of half the side'

    def hole(self, grey: np.ndarray | None, picture: tuple[int, int], size: int, rng: np.random.Generator,
             failures: list[str]) -> np.ndarray:
        return masks.block(rng, size)


class RandomFile(MaskSource):
    """A random file, whatever the picture."""

    help = 'random file of --mask'
    reads_files = True
    files: MaskFiles

    def hole(self, grey: np.ndarray | None, picture: tuple[int, int], size: int, rng: np.random.Generator,
             failures: list[str]) -> np.ndarray:
        first = int(rng.integers(len(self.files)))
        return read_or_replace(len(self.files), first, rng, self.files.load, failures) > geometry.HOLE_LEVEL


class PairedFile(MaskSource):
    """The picture's own file."""

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

    def hole(self, grey: np.ndarray | None, picture: tuple[int, int], size: int, rng: np.random.Generator,
             failures: list[str]) -> np.ndarray:
        assert grey is not None, 'a paired mask belongs to its picture'
        return geometry.hole_in(grey, picture[0], picture[1], 'crop')[1]


# --mask_type; a mask source is a class above and an entry here.
MASK_SOURCES: dict[int, type[MaskSource]] = {1: Block, 2: RandomFile, 3: PairedFile}
