"""The pictures and masks that both inference scripts work on, and the options that say how they are seen."""
from __future__ import annotations

import argparse
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ict import options
from ict.command import NOTHING_DONE, SOME_FAILED
from ict.data import geometry, images, listing, masks, pairs
from ict.device import parallel
from ict.errors import UserError, require
from ict.log import log
from ict.options import Given
from ict.runs.manifest import STAGE_1, file_digest

MASK_MODES = ('sealed', 'published')
MOST_OF_A_KIND = 20  # lines; a folder may hold thousands of pictures with the same peculiarity
_resolved = lru_cache(maxsize=1024)(os.path.realpath)
ALPHA = 'alpha'  # in place of a mask: the transparent part of the pictures themselves


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
    options.add_flag(parser, '--allow_truncated', 'read incomplete files, too, as far as they go')
    options.add_flag(parser, '--overwrite', 'make everything anew')


@dataclass(frozen=True)
class ViewFlags:
    """How pictures and masks are to be seen; None where the user leaves it open."""

    mask_mode: str | None = None
    geometry: str | None = None
    invert_mask: bool = False
    dilate: int = 0
    max_pixels: int = images.MAX_PIXELS
    allow_truncated: bool = False


@dataclass(frozen=True)
class View:
    """How pictures and masks are seen."""

    mask_mode: str = 'sealed'
    geometry: str = 'crop'
    invert_mask: bool = False
    dilate: int = 0

    @classmethod
    def from_flags(cls, flags: ViewFlags, mask_mode: str = 'sealed', geometry_name: str = 'crop') -> View:
        """From what the user chose; the other arguments are the defaults; a UserError where they exclude each other."""
        options.positive(flags, 'dilate', 'max_pixels', least=0)
        view = cls(flags.mask_mode or mask_mode, flags.geometry or geometry_name, flags.invert_mask, flags.dilate)
        if view.geometry == 'published' and view.mask_mode == 'sealed':
            raise UserError('--geometry published moves the mask against the image, so nothing can be sealed; '
                            'add --mask_mode published')
        if view.geometry == 'hole' and view.mask_mode == 'published':
            raise UserError('--geometry hole is for --mask_mode sealed')
        return view


@dataclass
class Inputs:
    """Images with their masks, in the order of their ids.

    Attributes:
        mask_files: the same listing as ``pictures`` where the transparent part of each is its mask.
        numbers: for each picture the number of its mask.
        notes: lines about folders and pairs, said before the first picture is read.
        quiet: all that there is to say was said before.
    """

    pictures: pairs.Listing
    mask_files: pairs.Listing
    numbers: list[int]
    flags: ViewFlags
    notes: list[str] = field(default_factory=list)
    quiet: bool = False
    said: set[str] = field(default_factory=set)
    _times: Counter[str] = field(default_factory=Counter)
    _mask_digests: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pictures)

    def id(self, i: int) -> str:
        """Name of the picture's results."""
        return self.pictures.id(i)

    def ids(self) -> list[str]:
        """All names, in order."""
        return [self.id(i) for i in range(len(self))]

    @property
    def from_alpha(self) -> bool:
        """Whether each picture's transparent part is its mask."""
        return self.mask_files is self.pictures

    def sources(self, i: int) -> dict[str, Any]:
        """Names and digests of a picture and its mask, for the manifest."""
        image = {'image': self.pictures.path(i).name, 'image_digest': file_digest(self.pictures.path(i))}
        if self.from_alpha:
            return {**image, 'mask': ALPHA, 'mask_digest': ''}
        number = self.numbers[i]
        if number not in self._mask_digests:
            self._mask_digests[number] = file_digest(self.mask_files.path(number))
        return {**image, 'mask': self.mask_files.name(number), 'mask_digest': self._mask_digests[number]}

    def read(self, i: int, view: View) -> tuple[images.Picture, np.ndarray]:
        """The decoded picture and its mask as grey levels (h, w) uint8; a UserError where there is nothing to fill."""
        for line in self.notes if not self.quiet else ():
            log(line)
        self.notes = []
        path, limits = self.mask_path(i), (self.flags.max_pixels, self.flags.allow_truncated)
        picture = images.load(self.pictures.path(i), images.WHITE, *limits)
        published = view.mask_mode == 'published'
        if self.from_alpha:
            levels = masks.of_alpha(path, picture, view.invert_mask, view.dilate)
            notes = masks.remarks(path, levels, view.invert_mask, view.dilate, ('what is transparent', 'the rest'))
        else:
            levels, notes = masks.read(path, view.invert_mask, view.dilate, *limits, published)
        if not published:
            levels = self._fitted(i, levels, picture, view)
        if levels.max() <= (0 if published else geometry.HOLE_LEVEL):
            found, wanted = (255 - levels.max(), 'darkest') if view.invert_mask else (levels.max(), 'brightest')
            raise UserError(f'{path}: nothing to fill; its {wanted} level is {found}, and the hole is what lies '
                            f'{"below" if view.invert_mask else "above"} the middle')
        for line in (*picture.notes, *notes):
            self.say(line)
        return picture, levels

    def _fitted(self, i: int, levels: np.ndarray, picture: images.Picture, view: View) -> np.ndarray:
        """The mask turned as its picture is where it was made for the stored pixels; says that, and other shapes."""
        height, width = picture.rgb.shape[:2]
        fitted = masks.fitted(levels, height, width, picture.orientation)
        sizes = f'{self.mask_path(i)}: {levels.shape[1]} x {levels.shape[0]}'
        if fitted is not levels:
            self.say(f'{sizes}, which is how {self.pictures.path(i)} lies before it is turned upright; turned with it')
        elif not masks.same_proportions(levels, height, width):
            how = 'its middle square is used' if view.geometry == 'crop' else 'it is stretched'
            self.say(f'{sizes} on a picture of {width} x {height} has other proportions; {how}')
        return fitted

    def mask_path(self, i: int) -> Path:
        """The mask of a picture."""
        return self.mask_files.path(self.numbers[i])

    def say(self, line: str) -> None:
        """``tell`` what every run that reads the picture says, unless another run has said it."""
        if not self.quiet:
            self.tell(line)

    def tell(self, line: str) -> None:
        """A line about a picture, once; of lines that differ in file and numbers alone, the first ones."""
        if line in self.said:
            return
        self.said.add(line)
        kind = re.sub('[0-9]+', '', line.partition(': ')[2])
        self._times[kind] += 1
        if self._times[kind] < MOST_OF_A_KIND:
            log(line, every_rank=True)
        elif self._times[kind] == MOST_OF_A_KIND:
            log(f'{line} (further lines like this one are left out)', every_rank=True)

    def reads(self, path: Path) -> bool:
        """Whether a file is one of the pictures or masks."""
        return _own_path(path) in self._own_paths

    @cached_property
    def _own_paths(self) -> set[str]:
        return {_own_path(listed.path(i)) for listed in (self.pictures, self.mask_files) for i in range(len(listed))}

    def refuse_to_overwrite(self, results: Iterable[Path], option: str, priors: Iterable[Path] = ()) -> None:
        """Raises a UserError when one of the files to be written is a picture, mask or prior to be read."""
        further = {_own_path(path) for path in priors}
        for path in results:
            if self.reads(path) or _own_path(path) in further:
                raise UserError(f'{option}: {path} would be written, and is an input; name another place')


def find(given: Given, masks_given: Given, flags: ViewFlags, output_dir: str | Path, *further: str | Path) -> Inputs:
    """List and pair images and masks; ``output_dir`` and the ``further`` folders of results are never searched."""
    without = [Path(folder) for folder in (output_dir, *further)]
    pictures = listing.find(*given, without=without)
    if masks_given.value == ALPHA:
        require(not os.path.exists(ALPHA), f'{masks_given}: is the name of a file or folder here; write ./{ALPHA} for '
                                           f'it, or go elsewhere to fill transparent parts')
        return Inputs(pictures, pictures, list(range(len(pictures))), flags, list(pictures.notes))
    mask_files = listing.find(*masks_given, without=without, unique=False)
    notes = dict.fromkeys((*pictures.notes, *mask_files.notes))
    pictures, mask_files = pairs.apart(pictures, mask_files)
    pairing = pairs.match(pictures, mask_files, str(Path(output_dir) / STAGE_1))
    return Inputs(pictures, mask_files, pairing.numbers, flags, [*notes, *pairing.notes])


def without_masks(given: Given, mask_option: str, flags: ViewFlags, output_dir: str | Path) -> str:
    """``ALPHA`` for pictures without masks; a UserError names the first that has no transparent part to fill.

    Pictures that can't be read are left to the run, which names them all.
    """
    pictures = listing.find(*given, without=Path(output_dir))
    for i in range(len(pictures)):
        try:
            picture = images.load(pictures.path(i), images.WHITE, flags.max_pixels, flags.allow_truncated)
        except UserError:
            continue
        try:
            masks.of_alpha(pictures.path(i), picture, False, 0)
        except UserError as error:
            raise UserError(f'{mask_option}: {error}') from None
    return ALPHA


def _own_path(path: Path) -> str:
    """Where a file's own entry lies, whatever links lead there."""
    return os.path.join(_resolved(path.parent), path.name)


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
        on_any_rank = parallel.on_any_rank([name in self.failures for name in self.names])
        failed = [name for name, is_failed in zip(self.names, on_any_rank, strict=True) if is_failed]
        if len(failed) == total:
            if self.failures:
                first = next(iter(self.failures.values()))
                more = f' (and {total - 1} more like it)' if total > 1 else ''
                log(f'error: no picture could be completed: {first}{more}')
            return NOTHING_DONE
        if failed:
            log(f'{len(failed)} of {total} pictures failed, the others are done:')
        for picture in failed:
            log(f'  {picture}: {self.failures.get(picture, "on another rank, see above")}')
        return SOME_FAILED if failed else 0
