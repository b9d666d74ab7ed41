"""Mask files as training sees them."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ict.data import geometry, masks, pairs
from ict.device import parallel
from ict.errors import UserError
from ict.log import log
from ict.training.loader import read_or_replace

_MEASURED, _SUSPICIOUS = 200, 0.7  # masks whose holes are measured; a mean above this is said


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
        """Mask ``i`` as grey levels (H, W) uint8, 255 = hole.

        Raises:
            UserError: it cannot be read.
        """
        return masks.load(self.listing.path(i), invert=self.invert, dilate=self.dilate)

    def draw(self, rng: np.random.Generator, failures: list[str]) -> np.ndarray:
        """The hole (H, W) bool of a random file; see ``read_or_replace``."""
        grey = read_or_replace(len(self), int(rng.integers(len(self))), rng, self.load, failures)
        return grey > geometry.HOLE_LEVEL

    def mean_hole(self, most: int) -> tuple[float, int]:
        """Mean share of the hole in up to ``most`` files, evenly spread, and how many of these can be read."""
        shares = []
        for i in np.unique(np.linspace(0, len(self) - 1, most).astype(int)):
            try:
                shares.append((self.load(int(i)) > geometry.HOLE_LEVEL).mean())
            except UserError:  # said when it is drawn
                continue
        return float(np.mean(shares)) if shares else 0.0, len(shares)


def find(path: str, option: str, output_dir: Path, invert: bool, dilate: int) -> MaskFiles:
    """The mask files of an option; a line when their holes are so large that black and white may be confused.

    Args:
        output_dir: is not searched.

    Raises:
        UserError: see ``pairs.listing``.
    """
    found = MaskFiles(pairs.listing(path, option, without=[output_dir], unique=False), invert, dilate)
    if parallel.is_writer():
        hole, count = found.mean_hole(_MEASURED)
        if hole > _SUSPICIOUS:
            meaning, remedy = ('black', 'leave --invert_mask out if white') if invert else \
                ('white', 'add --invert_mask if black')
            log(f'{option}: the hole covers {hole:.0%} of a picture on average ({count} read); masks are '
                f'{meaning} = hole; {remedy} is the hole')
    return found
