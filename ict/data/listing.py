"""The image files that a folder option names: a folder (searched), one image, or a text file with one path a line."""
from __future__ import annotations

import codecs
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile

import numpy as np

from ict import files
from ict.data.images import EXTENSIONS, HEIC_EXTENSIONS, HEIC_REMEDY
from ict.errors import UserError

FOLDER, FILE, LIST = 'folder', 'file', 'list'
_RECORDS = ('manifest.json', 'results.json')  # of an earlier run, in its save place
# What file servers, systems and archives make for themselves, in lower case: thumbnails, recycle bins, snapshots.
_SYSTEM_FOLDERS = frozenset((
    '@eadir', '#recycle', '@recycle', '#snapshot', '@recently-snapshot', '~snapshot', '@tmp', '$recycle.bin',
    'recycler', 'recycled', 'system volume information', 'found.000', '__macosx', 'network trash folder',
    'temporary items', 'lost+found', 'lost.dir'))
_SYSTEM_FILES = frozenset(('thumbs.db', 'ehthumbs.db', 'desktop.ini', 'icon\r'))
_SIZES = 1000  # files whose sizes tell two versions of a folder apart
_SHOWN = 3  # names in a line
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Listing:
    """Files found for a folder option: a folder's sorted by id, a list file's in its own order.

    Attributes:
        root: the folder that ``names`` are relative to.
        names: paths below ``root`` with '/', a NumPy byte array (small, and shared with worker processes).
        absolute: full paths of the same files, or None when they all lie in ``root``.
        kind: FOLDER, FILE or LIST, what the option names.
        notes: lines for the user: what was passed over.
    """

    root: Path
    names: np.ndarray
    absolute: np.ndarray | None = None
    kind: str = FOLDER
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def path(self, i: int) -> Path:
        """Where file ``i`` is."""
        if self.absolute is not None:
            return Path(os.fsdecode(bytes(self.absolute[i])))
        return self.root / self.name(i)

    def name(self, i: int) -> str:
        """The path below the folder, with '/'."""
        return os.fsdecode(bytes(self.names[i]))

    def id(self, i: int) -> str:
        """The path below the folder without its extension, with '/'."""
        return str(PurePosixPath(self.name(i)).with_suffix(''))

    def digest(self) -> str:
        """SHA-256 of the names, in order, and of the sizes of about a thousand of the files."""
        total = hashlib.sha256(b'\0'.join(self.names.tolist()))
        for i in range(0, len(self), max(1, len(self) // _SIZES)):
            with suppress(OSError):  # a missing file is counted as unreadable later
                total.update(b'\0%d' % os.path.getsize(self.path(i)))
        return total.hexdigest()

    def only(self, chosen: Sequence[int]) -> Listing:
        """The same listing with the files ``chosen`` alone, in that order."""
        index = np.asarray(chosen, np.intp)
        absolute = None if self.absolute is None else self.absolute[index]
        return Listing(self.root, self.names[index], absolute, self.kind, self.notes)


def find(given: str | Path, option: str, without: Path | Sequence[Path] = (), cache: Path | None = None,
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
            found = _of_folder(path, skip, cache, writes)
            hint = '; '.join([f'has no images ({" ".join(EXTENSIONS)})', *found.notes])
        elif path.is_file() and path.suffix.lower() in EXTENSIONS:
            found, hint = Listing(path.parent, _packed([path.name]), kind=FILE), ''
        elif path.is_file() and path.suffix.lower() in HEIC_EXTENSIONS:
            raise UserError(f'{option} {given}: {HEIC_REMEDY}')
        elif path.is_file():
            found, hint = _of_list(path, option), 'lists no files'
        else:
            raise UserError(f'{option} {given}: no such file or folder')
    except OSError as error:
        raise UserError(f'{option} {given}: not readable ({error.strerror}: {error.filename})') from None
    if not len(found):
        raise UserError(f'{option} {given}: {hint}')
    if unique:
        _refuse_twins(found, option)
    return found


def _packed(names: Sequence[str]) -> np.ndarray:
    return np.array([os.fsencode(n) for n in names], dtype=np.bytes_)


def _refuse_twins(found: Listing, option: str) -> None:
    order = range(len(found)) if found.kind == FOLDER else sorted(range(len(found)), key=found.id)
    last, last_id = -1, None
    for i in order:
        if (own := found.id(i)) == last_id:
            raise UserError(f'{option}: {found.path(last)} and {found.path(i)} would have the same results; '
                            f'rename one')
        last, last_id = i, own


# Folders

@dataclass
class _Scan:
    """What was found below a folder, and what was passed over."""

    names: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    changed: list[int] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    systems: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    heic: list[str] = field(default_factory=list)
    endings: Counter[str] = field(default_factory=Counter)
    own_results: int = 0

    def notes(self, root: Path) -> Iterator[str]:
        """A line for each kind of thing that was passed over."""
        yield from (f'{line}; passed over' for line in self.unreadable)
        parts = [f'{_counted(len(names), what)} ({shown(names)})' for names, what in
                 ((self.results, 'folder of earlier results'), (self.systems, "folder of the system's own")) if names]
        if self.own_results:
            parts.append(f'{_counted(self.own_results, "result")} of an earlier run')
        if parts:
            yield f'{root}: passed over {", ".join(parts)}'
        if self.endings:
            counts, without = sorted(self.endings.items(), key=lambda item: (-item[1], item[0])), 'without one'
            yield (f'{root}: passed over for their ending: '
                   f'{", ".join(f"{count} {ending or without}" for ending, count in counts)}')
        if self.heic:
            yield f'{root}: passed over {shown(self.heic)}: {HEIC_REMEDY}'


def shown(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
    return ', '.join(names[:_SHOWN]) + more


def _counted(count: int, what: str) -> str:
    first, _, rest = what.partition(' ')
    return f'{count} {first}{"s" * (count != 1)} {rest}'.rstrip()


def _of_folder(root: Path, skip: set[str], cache: Path | None, writes: bool) -> Listing:
    if cache is not None and (kept := _read_cache(root, cache)) is not None:
        return kept
    scan = _scan(root, skip)
    scan.names.sort(key=_order)
    found = Listing(root, _packed(scan.names), notes=tuple(scan.notes(root)))
    if cache is not None and writes and not scan.unreadable:  # permissions may change without a trace
        with files.replacing(cache) as temporary, open(temporary, 'wb') as stream:
            np.savez(stream, root=_packed([os.path.realpath(root)]), names=found.names,
                     folders=_packed(scan.folders), changed=np.array(scan.changed, np.int64),
                     notes=_packed(found.notes))
    return found


def _order(name: str) -> tuple[str, str]:
    return str(PurePosixPath(name).with_suffix('')), name


def _read_cache(root: Path, cache: Path) -> Listing | None:
    try:
        with np.load(cache, allow_pickle=False) as kept:
            if os.fsdecode(bytes(kept['root'][0])) != os.path.realpath(root):
                return None
            for below, changed in zip(kept['folders'], kept['changed'], strict=True):
                if os.stat(root / os.fsdecode(bytes(below))).st_mtime_ns != changed:
                    return None
            return Listing(root, kept['names'], notes=tuple(os.fsdecode(bytes(line)) for line in kept['notes']))
    except (OSError, ValueError, KeyError, EOFError, IndexError, BadZipFile):
        return None


def _scan(root: Path, skip: set[str]) -> _Scan:
    scan = _Scan()
    results: list[str] = []
    # A folder, those that it lies in, and for each with results its length and the pictures that they were made of.
    waiting: list[tuple[str, frozenset[tuple[int, int]], tuple[tuple[int, set[str]], ...]]] = [('', frozenset(), ())]
    while waiting:
        below, above, records = waiting.pop()
        folder = root / below
        try:
            state = os.stat(folder)
            if (state.st_dev, state.st_ino) in above:
                continue  # a link to a folder that it lies in
            subfolders, images, others = _entries(folder, skip)
        except OSError as error:
            if not below:
                raise
            scan.unreadable.append(f'{folder}: cannot be read ({error.strerror})')
            continue
        scan.folders.append(below)
        scan.changed.append(state.st_mtime_ns)
        known = [record for name in _RECORDS if name in others and (record := _recorded(folder / name)) is not None]
        if known:
            pictures = set().union(*known)
            if below and not any(_order(name)[0] in pictures and not _is_made(name, pictures) for name in images):
                scan.results.append(below.rstrip('/'))  # there are no photographs beside them
                continue
            records = (*records, (len(below), pictures))
        above |= {(state.st_dev, state.st_ino)}
        for name in subfolders:
            if name.lower() in _SYSTEM_FOLDERS:
                scan.systems.append(below + name)
            else:
                waiting.append((f'{below}{name}/', above, records))
        for name in (below + name for name in images):
            made = any(_is_made(name[length:], pictures) for length, pictures in records)
            (results if made else scan.names).append(name)
        for name in others:
            ending = os.path.splitext(name)[1].lower()
            if ending in HEIC_EXTENSIONS:
                scan.heic.append(below + name)
            elif name.lower() not in _SYSTEM_FILES:
                scan.endings[ending] += 1
    if scan.names:
        scan.own_results = len(results)
    else:  # where there is nothing else, the results are what is meant
        scan.names = results
    return scan


def _entries(folder: Path, skip: set[str]) -> tuple[list[str], list[str], list[str]]:
    """Names of the sub-folders, images and other files of a folder; hidden ones are left out."""
    subfolders: list[str] = []
    images: list[str] = []
    others: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith('.'):
                continue
            linked = entry.is_symlink()
            if entry.is_dir(follow_symlinks=False) or (linked and os.path.isdir(entry.path)):
                if not skip or os.path.realpath(entry.path) not in skip:
                    subfolders.append(name)
            elif entry.is_file(follow_symlinks=False) or (linked and _file_or_missing(entry.path)):
                known = os.path.splitext(name)[1].lower() in EXTENSIONS
                (images if known else others).append(name)
    return subfolders, images, others


def _file_or_missing(path: str) -> bool:
    """Not a pipe or device; a link to nothing is said when it is read."""
    return os.path.isfile(path) or not os.path.exists(path)


def _recorded(path: Path) -> dict[str, dict] | None:
    """The pictures that a record of an earlier run tells of; None for a file of others by the same name."""
    try:
        content = files.read_json(path)
    except UserError:
        return None
    ours = isinstance(content, dict) and all(isinstance(content.get(key), dict) for key in ('settings', 'pictures'))
    return content['pictures'] if ours else None


def _is_made(name: str, pictures: set[str]) -> bool:
    """Whether a file is a result, prior or comparison of a run on ``pictures`` whose save place it lies in."""
    stem = _order(name)[0]
    found = re.fullmatch(r'(.*)_\d+', stem)
    return (stem == 'comparison' or (found is not None and found[1] in pictures)
            or re.match(r'condition_\d+/', name) is not None)


# List files

def _of_list(path: Path, option: str) -> Listing:
    no_list = UserError(f'{option} {path}: neither an image ({" ".join(EXTENSIONS)}) nor a text file of paths')
    with open(path, 'rb') as stream:
        start = stream.read(4096)
        if b'\0' in start and not start.startswith(_UTF16):
            raise no_list
        text = _decoded(start + stream.read(), no_list)
    here = Path(os.path.abspath(path.parent))
    names, absolute = [], []
    for line in (part.strip() for part in text.split('\n')):
        full = _file_of(line)
        if full is None:
            if not line or line.startswith('#'):
                continue
            raise UserError(f'{option} {path}: it lists {line}, which is no file; paths start in the folder that the '
                            f'command runs in') if line.isprintable() else no_list
        name = full.relative_to(here) if full.is_relative_to(here) else full.relative_to(full.anchor)
        names.append(name.as_posix())
        absolute.append(str(full))
    return Listing(here, _packed(names), _packed(absolute), LIST)


def _decoded(content: bytes, no_list: UserError) -> str:
    """The text of a list file: UTF-8 with or without a byte order mark (and file names that are no text), or UTF-16."""
    try:
        if content.startswith(_UTF16):
            return content.decode('utf-16')
    except UnicodeDecodeError:
        raise no_list from None
    return os.fsdecode(content.removeprefix(codecs.BOM_UTF8))


def _file_of(line: str) -> Path | None:
    """The file that a line names, as it stands or in quotes, relative to where the user stands like every path."""
    quoted = len(line) > 2 and line[0] == line[-1] and line[0] in '\'"'
    for text in (line, *([line[1:-1]] if quoted else [])):
        if text and os.path.isfile(full := os.path.abspath(text)):
            return Path(full)
    return None
