"""Errors for the user: one line with the culprit and the remedy, exit status 2, no traceback."""
from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

NOTHING_DONE = 2
BUG = 70  # Python's own 1 would mean that some pictures failed
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_NO_MEMORY = "memory isn't enough"  # in the words of MindSpore's allocators
_CONTROL = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}


class UserError(Exception):
    """Something the user can mend; the message is one line that names the file or option and what to do."""


def note(message: str) -> None:
    """One line for the user that is not a result, on standard error."""
    print(one_line(message), file=sys.stderr, flush=True)


def one_line(message: str) -> str:
    """The message on one line, whatever a file name in it holds."""
    return message.translate(_CONTROL)


def not_written(path: Path, error: OSError) -> UserError:
    """The line for one file that can't be written while others can; raises ``error`` where no other can either."""
    if error.errno in _NO_ROOM:
        raise error
    return UserError(f'{path}: cannot be written ({error.strerror})')


def run(main: Callable[[list[str]], int | None]) -> int:
    """Exit status of ``main(argv)``: 2 and a line for a ``UserError``, a full disk or memory; 70 for bugs."""
    sys.stdout.reconfigure(errors='backslashreplace')  # a file name may be no text
    try:
        return main(sys.argv[1:]) or 0
    except UserError as error:
        note(f'error: {error}')
        return NOTHING_DONE
    except KeyboardInterrupt:
        note('interrupted: finished files are whole; the same command continues (a training: with --ckpt_path)')
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in _NO_ROOM:
            traceback.print_exc()
            return BUG
        note(f'error: nothing more can be written ({error.strerror}); finished files are whole, and the same command '
             f'(a training: with --ckpt_path) continues once there is room')
        return NOTHING_DONE
    except Exception as error:
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY in str(error)):
            note('error: out of memory; finished files are whole. Smaller pictures need less, and where there is such '
                 'an option a smaller --batch_size or --image_size, --recompute or --amp_level O2')
            return NOTHING_DONE
        traceback.print_exc()
        return BUG
