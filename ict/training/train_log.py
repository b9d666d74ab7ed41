"""The log of a training: a table, and its curves as a picture."""
from __future__ import annotations

import csv
from pathlib import Path

from ict.data import encode
from ict.errors import UserError
from ict.runs import report
from ict.training.checkpointer import Progress


class TrainLog:
    """``<network>_log.csv``, whose rows are means over the steps since the row before, and ``<network>_curves.png``."""

    def __init__(self, folder: Path, network: str, progress: Progress, writes: bool) -> None:
        self.path, self.picture = folder / f'{network}_log.csv', folder / f'{network}_curves.png'
        self.writes = writes
        self.rows: list[dict[str, str]] = []
        if progress.step and self.path.is_file():
            try:
                with open(self.path, newline='', encoding='utf-8') as stream:
                    self.rows = [row for row in csv.DictReader(stream) if int(row['step']) <= progress.step]
                self._series()
            except (KeyError, TypeError, ValueError, csv.Error) as error:
                raise UserError(f'{self.path}: is no longer the table that a training writes ({error!r}); bring it '
                                f'back, or move it away to begin a new one') from None

    def add(self, step: int, values: dict[str, float]) -> None:
        """A row of metrics of one step."""
        self.rows.append({'step': str(step), **{k: f'{v:.6g}' for k, v in values.items()}})

    def flush(self) -> None:
        """Write the table and the picture of the curves."""
        if not self.writes or not self.rows:
            return
        report.write_csv(self.path, self.rows)
        encode.write(self.picture, report.curves(self._series()))

    def _series(self) -> dict[str, list[tuple[int, float]]]:
        """The curves' points by name."""
        series = {}
        for key in dict.fromkeys(key for row in self.rows for key in row if key not in ('step', 'epoch', 'seconds')):
            points = [(int(row['step']), float(row[key])) for row in self.rows if row.get(key)]
            if any(value for _, value in points):  # a loss that is switched off is no curve
                series[key] = points
        return series
