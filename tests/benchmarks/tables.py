"""What every benchmark writes: benchmark.md and benchmark.csv, with a line on the machine."""
from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ict import files
from ict.device import gpu
from ict.runs import report
from ict.runs.report import Columns, markdown

__all__ = ['Columns', 'Row', 'machine', 'markdown', 'show', 'write']

Row = dict[str, Any]


def machine(target: str, load: float) -> str:
    """One line on what was measured on; ``load`` is the system's before anything was started."""
    cards = gpu.this_machine().cards if target == 'GPU' else ()
    return (f'{", ".join([target, *(card.name for card in cards)])}; {os.cpu_count()} cores, {platform.machine()}; '
            f'MindSpore {metadata.version("mindspore")}, Python {platform.python_version()}; load {load:.1f} before.')


def write(output_dir: Path, title: str, paragraphs: Sequence[str], rows: Sequence[Row]) -> None:
    """benchmark.md, and benchmark.csv with the rows."""
    text = '\n\n'.join([f'# {title}', *paragraphs]) + '\n'
    files.write_bytes(output_dir / 'benchmark.md', text.encode('utf-8', 'surrogateescape'))
    report.write_csv(output_dir / 'benchmark.csv', rows)


def show(output_dir: Path) -> None:
    """Print benchmark.md."""
    print((output_dir / 'benchmark.md').read_text(encoding='utf-8', errors='surrogateescape'))
