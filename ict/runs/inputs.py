"""The pictures and masks that both inference scripts work on, and the options that say how they are seen."""
from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ict import options
from ict.command import NOTHING_DONE, SOME_FAILED
from ict.data import geometry, images, masks, pairs
from ict.device import parallel
from ict.errors import UserError
from ict.log import log
from ict.runs.manifest import file_digest

MASK_MODES = ('sealed', 'published')


def add_options(parser: argparse.ArgumentParser) -> None:
    """How pictures and masks are seen; both stages must agree, so they are in the manifest."""
    parser.add_argument('--mask_mode', choices=MASK_MODES, default=None,
                        help='sealed: nothing under the mask can reach a result; published: as the published code '
                             '(default: sealed; stage 2: as the priors were made)')
    parser.add_argument('--geometry', choices=geometry.GEOMETRIES, default=None,
                        help='crop: middle square; resize: squashed; hole: a square around the hole; published: '
                             'what each stage of the published code does (default: crop; run.py with '
                             '--keep_size: resize; stage 2: as the priors were made)')
    options.add_flag(parser, '--invert_mask', 'black is the hole in the mask files')
    parser.add_argument('--dilate', type=int, default=0, help='grow the hole by so many mask pixels')
    parser.add_argument('--max_pixels', type=int, default=images.MAX_PIXELS,
                        help='refuse larger pictures; 0 lifts the limit')
    options.add_flag(parser, '--overwrite', 'make everything anew')


@dataclass(frozen=True)
class View:
    """How pictures and masks are seen."""

    mask_mode: str = 'sealed'
    geometry: str = 'crop'
    invert_mask: bool = False
    dilate: int = 0

    @classmethod
    def of(cls, args: argparse.Namespace, mask_mode: str = 'sealed', geometry_name: str = 'crop') -> View:
        """From parsed options; the other arguments are the defaults.

        Raises:
            UserError: options that exclude each other.
        """
        options.positive(args, 'dilate', 'max_pixels', least=0)
        view = cls(args.mask_mode or mask_mode, args.geometry or geometry_name, args.invert_mask, args.dilate)
        if view.geometry == 'published' and view.mask_mode == 'sealed':
            raise UserError('--geometry published moves the mask against the image, so nothing can be sealed; '
                            'add --mask_mode published')
        if view.geometry == 'hole' and view.mask_mode == 'published':
            raise UserError('--geometry hole is for --mask_mode sealed')
        return view


@dataclass
class Inputs:
    """Images with their masks, in the order of their ids; ``quiet``: what can't be represented was said before."""

    pictures: pairs.Listing
    mask_files: pairs.Listing
    numbers: list[int]
    max_pixels: int
    quiet: bool = False
    said: set[str] = field(default_factory=set)
    _mask_digests: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pictures)

    def id(self, i: int) -> str:
        """Name of the picture's results."""
        return self.pictures.id(i)

    def ids(self) -> list[str]:
        """All names, in order."""
        return [self.id(i) for i in range(len(self))]

    def sources(self, i: int) -> dict[str, Any]:
        """Names and digests of a picture and its mask, for the manifest."""
        number = self.numbers[i]
        if number not in self._mask_digests:
            self._mask_digests[number] = file_digest(self.mask_files.path(number))
        return {'image': self.pictures.path(i).name, 'mask': self.mask_files.path(number).name,
                'image_digest': file_digest(self.pictures.path(i)), 'mask_digest': self._mask_digests[number]}

    def read(self, i: int, view: View) -> tuple[images.Picture, np.ndarray]:
        """The decoded picture and its mask as grey levels.

        Raises:
            UserError: one of them is unreadable.
        """
        mask = self.mask_path(i)
        lift = '--max_pixels 0 lifts it'
        grey, notes = masks.read(mask, view.invert_mask, view.dilate, self.max_pixels, too_large=lift)
        picture = images.load(self.pictures.path(i), max_pixels=self.max_pixels, too_large=lift)
        for line in (*picture.notes, *notes):
            self.say(line)
        return picture, grey

    def without_hole(self, i: int, grey: np.ndarray, view: View) -> str:
        """What is said of a picture in whose completed part is no hole."""
        levels = f'down to {255 - int(grey.max())}, black' if view.invert_mask else f'up to {int(grey.max())}, white'
        return (f'{self.mask_path(i)}: no hole in the part of {self.pictures.path(i)} that is completed; the mask has '
                f'levels {levels} is the hole (--invert_mask: the other way round; --geometry resize: the whole '
                f'picture)')

    def mask_path(self, i: int) -> Path:
        """The mask of a picture."""
        return self.mask_files.path(self.numbers[i])

    def say(self, line: str) -> None:
        """A line about a picture, once."""
        if line not in self.said and not self.quiet:
            self.said.add(line)
            log(line, every_rank=True)

    def reads(self, path: Path) -> bool:
        """Whether a file is one of the pictures or masks."""
        return _place(path) in self._own_places

    @cached_property
    def _own_places(self) -> set[str]:
        return {_place(listing.path(i)) for listing in (self.pictures, self.mask_files) for i in range(len(listing))}

    def refuse_to_overwrite(self, results: Iterable[Path], option: str, priors: Iterable[Path] = ()) -> None:
        """Raises a UserError when one of the files to be written is a picture, mask or prior to be read."""
        further = {_place(path) for path in priors}
        for path in results:
            if self.reads(path) or _place(path) in further:
                raise UserError(f'{option}: {path} would be written, and is an input; name another place')


def find(image_value: str, image_option: str, mask_value: str, mask_option: str, max_pixels: int,
         save_place: str | Path, *further: str | Path) -> Inputs:
    """List and pair images and masks; the save place and the ``further`` folders of results are never searched.

    Raises:
        UserError: see ``pairs.listing`` and ``pairs.masks_for``.
    """
    without = [Path(folder) for folder in (save_place, *further)]
    pictures = pairs.listing(image_value, image_option, without=without)
    mask_files = pairs.listing(mask_value, mask_option, without=without, unique=False)
    return Inputs(pictures, mask_files, pairs.masks_for(pictures, mask_files), max_pixels)


@lru_cache(maxsize=1024)
def _resolved(folder: str) -> str:
    return os.path.realpath(folder)


def _place(path: Path) -> str:
    """Where a file's own entry lies, whatever links lead there."""
    return os.path.join(_resolved(str(path.parent)), path.name)


@dataclass
class Outcome:
    """Which of the pictures ``names`` failed, and the exit status that follows."""

    names: list[str]
    failures: dict[str, str] = field(default_factory=dict)

    def fail(self, picture: str, error: Exception) -> None:
        """Note a failure; the others go on."""
        if picture not in self.failures:
            self.failures[picture] = str(error)
            log(f'failed: {error}', every_rank=True)

    def status(self) -> int:
        """0 all done; 1 some failed, listed; 2 nothing was done, one line says why. All ranks come to the same."""
        total = len(self.names)
        failed = sum(parallel.on_any_rank([name in self.failures for name in self.names]))
        if failed == total:
            if self.failures:
                first = next(iter(self.failures.values()))
                more = f' (and {total - 1} more like it)' if total > 1 else ''
                log(f'error: no picture could be completed: {first}{more}')
            return NOTHING_DONE
        if self.failures:
            log(f'{len(self.failures)} of {total} pictures failed, the others are done:')
        for picture, reason in self.failures.items():
            log(f'  {picture}: {reason}')
        return SOME_FAILED if failed else 0
