"""Crash-safe writing: beside, then renamed; a kill at any moment leaves the previous file whole."""
from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ict.errors import UserError

TEMPORARY = '.part-'  # unfinished files start with this; they are never read
_NO_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # of file systems that can't be told to write at once


def output_folder(path: str | Path, option: str) -> Path:
    """The folder, made if need be; a UserError where that is a file, or cannot be made or written."""
    folder = Path(path)
    for part in [folder, *folder.parents]:
        if os.path.exists(part) and not os.path.isdir(part):
            raise UserError(f'{option} {path}: {part} is a file, not a folder; name another place')
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'{option} {path}: cannot be made ({error.strerror})') from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f'{option} {path}: not writable')
    return folder


def output_file(path: str | Path, option: str) -> Path:
    """``path`` when a file can be written there, its folder made if need be."""
    target = Path(path)
    if os.path.isdir(target):
        raise UserError(f'{option} {path}: is a folder; name a file')
    output_folder(target.parent, option)
    return target


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``; what was written there takes its place when the block ends well."""
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=TEMPORARY, suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        commit(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def commit(temporary: Path, path: Path) -> None:
    """Flush ``temporary`` to the disk and rename it to ``path``."""
    flush(temporary)
    os.replace(temporary, path)


def flush(temporary: Path) -> None:
    """Bring a file to the disk, with the permissions of an ordinary new file where the file system knows any."""
    with suppress(OSError):
        os.chmod(temporary, 0o666 & ~_umask())
    with open(temporary, 'rb') as stream:
        sync(stream)


def sync(stream: IO[Any]) -> None:
    """Bring what was written to an open file to the disk, where the file system can be told to."""
    try:
        os.fsync(stream.fileno())
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write ``content`` to ``path``, crash-safe."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: str | Path, content: Any) -> None:
    """Write ``content`` as readable JSON, crash-safe."""
    write_bytes(path, (json.dumps(content, indent=1) + '\n').encode())


def read_json(path: str | Path) -> Any:
    """The file's content; a UserError where it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'{path}: not readable as JSON ({error}); use --overwrite or another save place') from None


def refuse_foreign(path: Path, start: str | None = None) -> None:
    """Raises a UserError where there is a file that was not made here.

    Args:
        start: how files that are made here begin; None: any file is foreign.
    """
    if os.path.isfile(path) and (start is None or _start(path, len(start)) != start.encode()):
        raise UserError(f'{path}: is there already, and was not made here; move it away, name another save place, or '
                        f'use --overwrite')


def _start(path: Path, length: int) -> bytes:
    with suppress(OSError), open(path, 'rb') as stream:
        return stream.read(length)
    return b''


def remove(path: Path) -> None:
    """Remove a file if it is there; a UserError where its folder doesn't allow it."""
    try:
        if os.path.isfile(path):  # which is False for a name that is too long, too
            path.unlink(missing_ok=True)
    except PermissionError as error:
        raise UserError(f'{path}: cannot be removed ({error.strerror}); make its folder writable') from None


def sweep(folder: str | Path, below: bool = True) -> None:
    """Remove what an interrupted run left unfinished in ``folder`` (and below)."""
    if not os.path.isdir(folder):
        return
    pattern = TEMPORARY + '*'
    for left in Path(folder).rglob(pattern) if below else Path(folder).glob(pattern):
        remove(left)
