"""Errors for the user: one line with the culprit and the remedy."""
from __future__ import annotations

import errno
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class UserError(Exception):
    """Something the user can mend; the message is one line that names the file or option and what to do."""


def require(condition: bool, message: str) -> None:
    """A UserError unless ``condition``."""
    if not condition:
        raise UserError(message)


def not_written(path: Path, error: OSError) -> UserError:
    """The line for one file that can't be written while others can; raises ``error`` where no other can either."""
    if error.errno in NO_ROOM:
        raise error
    return UserError(f'{path}: cannot be written ({error.strerror})')
