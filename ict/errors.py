"""Errors for the user: one line with the culprit and the remedy, exit status 2, no traceback."""
from __future__ import annotations

import os
import sys
from collections.abc import Callable

NOTHING_DONE = 2


class UserError(Exception):
    """Something the user can mend; the message is one line that names the file or option and what to do."""


def note(message: str) -> None:
    """One line for the user that is not a result, on standard error."""
    print(message, file=sys.stderr, flush=True)


def run(main: Callable[[list[str]], int | None]) -> int:
    """Exit status of ``main(argv)``: 2 with one line for a ``UserError``; bugs keep their traceback."""
    try:
        return main(sys.argv[1:]) or 0
    except UserError as error:
        note('error: ' + ' '.join(str(error).split()))
        return NOTHING_DONE
    except KeyboardInterrupt:
        note('interrupted: finished files are whole; the same command continues')
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
