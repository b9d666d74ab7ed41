"""One run at a time in an output folder."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(folder: Path, option: str) -> Iterator[None]:
    yield
