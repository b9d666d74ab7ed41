"""Running the project's commands: exit statuses, one line instead of a traceback, child processes."""
from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from ict.device import parallel
from ict.errors import NO_ROOM, UserError
from ict.log import log
from ict.options import how_to_go_on
from ict.process import end_with_parent, shell_status

SOME_FAILED, NOTHING_DONE = 1, 2
BUG = 70  # Python's own 1 would mean that some pictures failed
_NO_MEMORY = "memory isn't enough"  # in the words of MindSpore's allocators
_TERMINAL_SECONDS = 1  # in which Ctrl-C has ended a child
INTERRUPTED = 'interrupted: finished files are whole; '


def run(main: Callable[[list[str]], int | None]) -> int:
    """Exit status of ``main(argv)``: 2 and a line for a ``UserError``, a full disk or memory; 70 for bugs."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='backslashreplace')  # a file name may be no text
    try:
        status = main(sys.argv[1:]) or 0
        parallel.wait_for_all(parallel.has_joined())  # msrun ends the others when one has left
    except (Exception, KeyboardInterrupt) as error:
        status = _explained(error)
    parallel.leave_if_joined(status)
    return status


def _explained(error: BaseException) -> int:
    """Exit status of what ended a command, after a line, or a bug's traceback, for the user."""
    if isinstance(error, UserError):
        log(f'error: {error}', every_rank=True)
        return NOTHING_DONE
    if isinstance(error, KeyboardInterrupt):
        log(INTERRUPTED + how_to_go_on())
        return 128 + signal.SIGINT
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        log(f'error: nothing more can be written ({error.strerror}); finished files are whole, and once there is room '
            f'{how_to_go_on()}', every_rank=True)
        return NOTHING_DONE
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY in str(error)):
        log('error: out of memory; finished files are whole. Smaller pictures need less, and where there is such '
            'an option a smaller --batch_size or --image_size, --recompute or --amp_level O2', every_rank=True)
        return NOTHING_DONE
    if line := parallel.lost(error):
        log(f'error: {line}', every_rank=True)
        return NOTHING_DONE
    traceback.print_exception(error)
    return BUG


def call(script: Path, argv: list[str]) -> int:
    """Exit status of a script, which ends when this process does; 128 + the signal that ended it."""
    child = subprocess.Popen([sys.executable, str(script), *argv], preexec_fn=end_with_parent)
    before = signal.signal(signal.SIGTERM, lambda number, _: child.send_signal(number))
    try:
        status = child.wait()
    except KeyboardInterrupt:
        child.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    return _shell_status(status, f'{script.parent.name}/{script.name}')


def _shell_status(status: int, name: str) -> int:
    """A process's exit status as the shell has it; a line tells of a signal that ended it."""
    if status < 0:
        cause = ' (out of memory?)' if status == -signal.SIGKILL else ''
        log(f'{name} was ended by signal {-status}{cause}; {how_to_go_on()}')
    return shell_status(status)


_progress: int | None = None  # the pipe on which this process tells its supervisor what it works on


def supervised(work: Callable[[], int]) -> int:
    """Exit status of ``work``, done in a forked process, so that a signal that ends it is told.

    To be called before MindSpore is imported. The two processes end together.
    """
    global _progress
    receive, _progress = os.pipe()
    child = os.fork()
    if child == 0:
        end_with_parent()
        os.close(receive)
        status = work()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # without half a second in which MindSpore tidies up memory that ends anyway
    os.close(_progress)
    signal.signal(signal.SIGTERM, lambda number, _: os.kill(child, number))
    interrupted: list[int] = []

    def interrupt(number: int, _: object) -> None:
        """The terminal sends Ctrl-C to both; a signal to this process alone is passed on when the child stays."""
        interrupted.append(number)
        signal.alarm(_TERMINAL_SECONDS)

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGINT))
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # the alarm must not meet another process of this number
    signal.alarm(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])  # MindSpore ends an interrupted process by SIGTERM
    if status >= 0:
        return status
    if interrupted:
        log(INTERRUPTED + how_to_go_on())
        return 128 + signal.SIGINT
    with open(receive, encoding='utf-8') as names:
        return _shell_status(status, (names.read().splitlines() or ['run.py'])[-1])


def working_on(name: str) -> None:
    """Tell the supervisor, if there is one, which part of the work begins."""
    if _progress is not None:
        os.write(_progress, f'{name}\n'.encode())
