"""Lines for the user that are not results."""
from __future__ import annotations

import sys

from tqdm import tqdm

from ict.device import parallel

_CONTROL = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}


def log(message: str, every_rank: bool = False) -> None:
    """Print one line on standard error, above any progress bar; by default only on the rank that writes."""
    if every_rank or parallel.is_writer():
        tqdm.write(one_line(message), file=sys.stderr)
        sys.stderr.flush()


def one_line(message: str) -> str:
    """The message on one line, whatever a file name in it holds."""
    return message.translate(_CONTROL)
