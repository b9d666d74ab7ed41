"""A child process: it ends with its parent; its exit status as the shell has it."""
from __future__ import annotations

import ctypes
import signal
import sys

_END_WITH_PARENT = 1  # Linux: PR_SET_PDEATHSIG


def end_with_parent() -> None:
    """Have this process killed when its parent ends (on Linux)."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL)


def shell_status(status: int) -> int:
    """A process's exit status, negative for a signal that ended it, as the shell has it: 128 + the signal."""
    return status if status >= 0 else 128 - status
