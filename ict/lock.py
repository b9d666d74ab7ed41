"""One run at a time in an output folder."""
from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ict.device import parallel
from ict.errors import UserError

NAME = '.lock'  # hidden, so that no listing shows it; it names the process that holds the folder


@contextmanager
def locked(folder: Path, option: str) -> Iterator[None]:
    """Keep other runs out of a folder until the block ends or the process dies.

    The lock is the kernel's, on a hidden file: a crash releases it, and forked workers do not inherit it. Under msrun
    rank 0 holds it for all. A file system without locks has none.

    Args:
        option: the option that named the folder, for the UserError where another process holds it.
    """
    path = folder / NAME
    descriptor = _acquire(path, option) if parallel.is_writer() else None
    try:
        yield
    finally:
        if descriptor is not None:
            _remove(path)  # while it is locked: who opened it before sees below that it is gone
            os.close(descriptor)


def _acquire(path: Path, option: str) -> int | None:
    """A descriptor of the locked file, or None where there are no locks."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, descriptor):
                os.truncate(descriptor, 0)
                os.write(descriptor, f'process {os.getpid()} on {platform.node()}'.encode())
                return descriptor
        except (BlockingIOError, PermissionError):  # EAGAIN, or EACCES on some systems
            holder = os.read(descriptor, 300).decode(errors='replace')
            os.close(descriptor)
            raise UserError(f'{option} {path.parent}: is in use by another run{f" ({holder})" if holder else ""}; '
                            f'wait for it or name another folder') from None
        except OSError:
            os.close(descriptor)
            _remove(path)
            return None
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the opened file is still the one at ``path``; the last holder may have removed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
