"""Which image, mask and prior belong together."""
from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile

import numpy as np

from ict import files
from ict.data.images import EXTENSIONS
from ict.errors import UserError

_SIZES = 1000  # files whose sizes tell two versions of a folder apart


@dataclass(frozen=True)
class Listing:
    """Files found for a folder option, sorted by id.

    Attributes:
        root: the folder that ``names`` are relative to.
        names: paths below ``root`` with '/', a NumPy byte array (small, and shared with worker processes).
        absolute: full paths of the same files, or None when they all lie in ``root``.
    """

    root: Path
    names: np.ndarray
    absolute: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    def path(self, i: int) -> Path:
        """Where file ``i`` is."""
        if self.absolute is not None:
            return Path(os.fsdecode(bytes(self.absolute[i])))
        return self.root / os.fsdecode(bytes(self.names[i]))

    def id(self, i: int) -> str:
        """The path below the folder without its extension, with '/'."""
        return str(PurePosixPath(os.fsdecode(bytes(self.names[i]))).with_suffix(''))

    def digest(self) -> str:
        """SHA-256 of the names, in order, and of the sizes of about a thousand of the files."""
        total = hashlib.sha256(b'\0'.join(self.names.tolist()))
        for i in range(0, len(self), max(1, len(self) // _SIZES)):
            with suppress(OSError):  # a missing file is counted as unreadable later
                total.update(b'\0%d' % os.path.getsize(self.path(i)))
        return total.hexdigest()


def listing(given: str | Path, option: str, without: Path | Sequence[Path] = (), cache: Path | None = None,
            unique: bool = True, writes: bool = True) -> Listing:
    """The image files of a folder option: a folder (searched recursively), one image, or a text file of paths.

    Args:
        without: folders that are never searched (the save place).
        cache: a file that keeps the scan of a large folder; it is used while no folder below has changed.
        unique: two files with the same id are an error.
        writes: whether a new scan is kept; of several ranks one does.

    Raises:
        UserError: missing, unreadable, without images, or the save place itself.
    """
    path = Path(given)
    skip = {os.path.realpath(folder) for folder in ((without,) if isinstance(without, Path) else without)}
    if not str(given):
        raise UserError(f'{option}: give a folder, an image file, or a text file with one path a line')
    try:
        if path.is_dir():
            if os.path.realpath(path) in skip:
                raise UserError(f'{option} {given}: is the save place, which is never searched; name another save '
                                f'place')
            found = _scan(path, skip, cache, writes)
            hint = f'has no images ({" ".join(EXTENSIONS)})'
        elif path.is_file() and path.suffix.lower() in EXTENSIONS:
            found, hint = Listing(path.parent, _packed([path.name])), ''
        elif path.is_file():
            found, hint = _from_text(path, option), 'lists no files'
        else:
            raise UserError(f'{option} {given}: no such file or folder')
    except OSError as error:
        raise UserError(f'{option} {given}: not readable ({error.strerror}: {error.filename})') from None
    if not len(found):
        raise UserError(f'{option} {given}: {hint}')
    if unique:
        _refuse_twins(found, option)
    return found


def _packed(names: list[str]) -> np.ndarray:
    return np.array([os.fsencode(n) for n in names], dtype=np.bytes_)


def _key(name: str) -> tuple[str, str]:
    return str(PurePosixPath(name).with_suffix('')), name


def _scan(root: Path, skip: set[str], cache: Path | None, writes: bool) -> Listing:
    if cache is not None:
        kept = _read_cache(root, cache)
        if kept is not None:
            return Listing(root, kept)
    names, folders, changed = [], [], []
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [('', frozenset())]
    while waiting:
        below, above = waiting.pop()
        folder = root / below
        state = os.stat(folder)
        if (state.st_dev, state.st_ino) in above:
            continue  # a link to a folder that it lies in
        above |= {(state.st_dev, state.st_ino)}
        folders.append(below)
        changed.append(state.st_mtime_ns)
        with os.scandir(folder) as entries:
            for entry in entries:
                name = below + entry.name
                if entry.name.startswith('.'):
                    continue
                linked = entry.is_symlink()
                if entry.is_dir(follow_symlinks=False) or (linked and os.path.isdir(entry.path)):
                    if not skip or os.path.realpath(entry.path) not in skip:
                        waiting.append((name + '/', above))
                elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS and (
                        entry.is_file(follow_symlinks=False) or (linked and _file_or_missing(entry.path))):
                    names.append(name)
    names.sort(key=_key)
    packed = _packed(names)
    if cache is not None and writes:
        with files.replacing(cache) as temporary, open(temporary, 'wb') as stream:
            np.savez(stream, root=_packed([os.path.realpath(root)]), names=packed, folders=_packed(folders),
                     changed=np.array(changed, np.int64))
    return Listing(root, packed)


def _file_or_missing(path: str) -> bool:
    """Not a pipe or device; a link to nothing is said when it is read."""
    return os.path.isfile(path) or not os.path.exists(path)


def _read_cache(root: Path, cache: Path) -> np.ndarray | None:
    try:
        with np.load(cache, allow_pickle=False) as kept:
            if os.fsdecode(bytes(kept['root'][0])) != os.path.realpath(root):
                return None
            for below, changed in zip(kept['folders'], kept['changed'], strict=True):
                if os.stat(root / os.fsdecode(bytes(below))).st_mtime_ns != changed:
                    return None
            return kept['names']
    except (OSError, ValueError, KeyError, EOFError, IndexError, BadZipFile):
        return None


def _from_text(path: Path, option: str) -> Listing:
    no_list = UserError(f'{option} {path}: neither an image ({" ".join(EXTENSIONS)}) nor a text file of paths')
    with open(path, 'rb') as stream:
        if b'\0' in stream.read(4096):
            raise no_list
        stream.seek(0)
        text = stream.read().removeprefix(b'\xef\xbb\xbf')  # some editors begin with a byte order mark
    here = Path(os.path.abspath(path.parent))
    entries = []
    for line in (os.fsdecode(part.strip()) for part in text.split(b'\n')):
        if not line:
            continue
        full = Path(os.path.abspath(line))  # relative to where the user stands, like every path
        if not os.path.isfile(full):
            raise UserError(f'{option} {path}: it lists {line}, which is no file') if line.isprintable() else no_list
        name = full.relative_to(here) if full.is_relative_to(here) else full.relative_to(full.anchor)
        entries.append((name.as_posix(), str(full)))
    entries.sort(key=lambda entry: _key(entry[0]))
    return Listing(here, _packed([name for name, _ in entries]), _packed([full for _, full in entries]))


def _refuse_twins(found: Listing, option: str) -> None:
    for i in range(1, len(found)):
        if found.id(i) == found.id(i - 1):
            raise UserError(f'{option}: {found.path(i - 1)} and {found.path(i)} would have the same results; '
                            f'rename one')


def masks_for(images: Listing, masks: Listing) -> list[int]:
    """For each image the number of its mask.

    A single mask serves all images; else the same name (below the folder, or of the file alone) where every image
    has its mask; else sorted order.

    Raises:
        UserError: fewer masks than images, names the first image without one; or masks of the same name.
    """
    if len(masks) == 1:
        return [0] * len(images)
    for i in range(1, len(masks)):
        if masks.path(i) == masks.path(i - 1):
            raise UserError(f'{masks.path(i)}: is listed twice; only a single mask file serves several images')
        if masks.id(i) == masks.id(i - 1):
            raise UserError(f'{masks.path(i - 1)} and {masks.path(i)} have the same name, so nothing tells whose masks '
                            f'they are; rename one')
    ids = {masks.id(i): i for i in range(len(masks))}
    if all(images.id(i) in ids for i in range(len(images))):
        return [ids[images.id(i)] for i in range(len(images))]
    stems = Counter(name.rpartition('/')[2] for name in ids)
    image_stems = [images.id(i).rpartition('/')[2] for i in range(len(images))]
    if all(stems[stem] == 1 for stem in image_stems) and len(set(image_stems)) == len(image_stems):
        by_stem = {name.rpartition('/')[2]: i for name, i in ids.items()}
        return [by_stem[stem] for stem in image_stems]
    if len(masks) < len(images):
        named = sum(images.id(i) in ids for i in range(len(images)))
        first = next(i for i in range(len(images)) if images.id(i) not in ids) if named else len(masks)
        raise UserError(f'{len(images)} images but only {len(masks)} masks: {images.path(first)} has none; '
                        f'add masks, or give a single mask file for all')
    return list(range(len(images)))


def condition_folders(prior: str | Path, option: str) -> list[Path]:
    """condition_1, condition_2, ... in stage 1's save place.

    Raises:
        UserError: there are none.
    """
    found = []
    while os.path.isdir(folder := Path(prior) / f'condition_{len(found) + 1}'):
        found.append(folder)
    if not found:
        raise UserError(f"{option} {prior}: holds no condition_1; give stage 1's --save_url")
    return found
