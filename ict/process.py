"""Running one of the project's commands in a process of its own."""
from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from pathlib import Path

from ict.errors import note

_END_WITH_PARENT = 1  # Linux: PR_SET_PDEATHSIG


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL)


def call(script: Path, argv: list[str]) -> int:
    """Exit status of a script, which ends when this process does; 128 + the signal that ended it."""
    child = subprocess.Popen([sys.executable, str(script), *argv],
                             preexec_fn=_end_with_parent if sys.platform == 'linux' else None)
    before = signal.signal(signal.SIGTERM, lambda number, _: child.send_signal(number))
    try:
        status = child.wait()
    except KeyboardInterrupt:
        child.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if status < 0:
        cause = ' (out of memory?)' if status == -signal.SIGKILL else ''
        note(f'{script.parent.name}/{script.name} was ended by signal {-status}{cause}; the same command continues')
    return status if status >= 0 else 128 - status
