"""Pictures and tables for people: comparison sheets, training curves, CSV and Markdown tables."""
from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ict import files
from ict.runs import metrics

HOLE_BINS = {'0-10 %': (0.0, 0.1), '10-20 %': (0.1, 0.2), '20-40 %': (0.2, 0.4), '40-60 %': (0.4, 0.6),
             '60-100 %': (0.6, 1.01), 'all': (0.0, 1.01)}  # 1 belongs to the last

Columns = Sequence[tuple[str, str, int]]  # title, key, decimals

_INK, _FAINT, _PAPER = (40, 40, 40), (215, 215, 215), (255, 255, 255)
_LINE, _NOISE = (31, 119, 180), (190, 215, 235)
_SMOOTHED = 60  # points from which on a moving mean is drawn over them


def sheet(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], gap: int = 6) -> np.ndarray:
    """A table of pictures of one size: rows of (H, W, 3) uint8 under column titles -> (H', W', 3) uint8.

    A shorter row is filled with paper.
    """
    height, width = rows[0][0].shape[:2]
    head = 22
    canvas = Image.new('RGB', (len(titles) * (width + gap) + gap, head + len(rows) * (height + gap)), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, title in enumerate(titles):
        draw.text((gap + i * (width + gap), 4), title, fill=_INK, font=ImageFont.load_default(13))
    for r, row in enumerate(rows):
        for i, picture in enumerate(row):
            canvas.paste(Image.fromarray(picture), (gap + i * (width + gap), head + r * (height + gap)))
    return np.asarray(canvas)


def curves(series: dict[str, list[tuple[int, float]]], width: int = 420, height: int = 260) -> np.ndarray:
    """A panel for each named series of (step, value): (H, W, 3) uint8."""
    series = {name: points for name, points in series.items() if points}
    columns = min(3, max(1, len(series)))
    rows = -(-len(series) // columns)
    canvas = Image.new('RGB', (columns * width, max(1, rows) * height), _PAPER)
    for i, (name, points) in enumerate(series.items()):
        panel = _panel(name, points, width, height)
        canvas.paste(panel, (i % columns * width, i // columns * height))
    return np.asarray(canvas)


def _panel(name: str, points: list[tuple[int, float]], width: int, height: int) -> Image.Image:
    left, right, top, bottom = 64, 14, 28, 30
    panel = Image.new('RGB', (width, height), _PAPER)
    draw = ImageDraw.Draw(panel)
    x, y = np.array(points, float).T
    low, high = y.min(), y.max()
    if high == low:
        margin = abs(low) / 2 or 0.5
        low, high = low - margin, high + margin
    first, last = x.min(), max(x.max(), x.min() + 1)

    def to_pixels(step: float, value: float) -> tuple[float, float]:
        return (left + (step - first) / (last - first) * (width - left - right),
                height - bottom - (value - low) / (high - low) * (height - top - bottom))

    draw.text((left, 6), name, fill=_INK, font=ImageFont.load_default(14))
    for tick in _ticks(low, high):
        _, level = to_pixels(first, tick)
        draw.line([(left, level), (width - right, level)], fill=_FAINT)
        draw.text((left - 6, level), f'{tick:.4g}', fill=_INK, font=ImageFont.load_default(11), anchor='rm')
    for tick in _ticks(first, last):
        across, _ = to_pixels(tick, low)
        draw.text((across, height - bottom + 6), f'{tick:g}', fill=_INK, font=ImageFont.load_default(11), anchor='mt')
    if len(points) >= _SMOOTHED:
        draw.line([to_pixels(*point) for point in points], fill=_NOISE, width=1)
        window = len(points) // 20
        y = np.convolve(y, np.ones(window))[:len(y)] / np.minimum(np.arange(len(y)) + 1, window)
    line = [to_pixels(*point) for point in zip(x, y, strict=True)]
    if len(line) > 1:
        draw.line(line, fill=_LINE, width=2, joint='curve')
    else:
        draw.ellipse([line[0][0] - 2, line[0][1] - 2, line[0][0] + 2, line[0][1] + 2], fill=_LINE)
    return panel


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between the two, about five."""
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    for factor in (1, 2, 2.5, 5, 10):
        if (high - low) / (step * factor) <= 6:
            step *= factor
            break
    start = math.ceil(low / step)
    return [i * step for i in range(start, math.floor(high / step + 1e-9) + 1)]


def write_csv(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """A table with the columns of all rows, crash-safe; what a row lacks, and nan, is an empty cell."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator='\n')
    table.writeheader()
    table.writerows({key: '' if _is_nan(value) else value for key, value in row.items()} for row in rows)
    files.write_bytes(path, text.getvalue().encode('utf-8', 'surrogateescape'))


def markdown(rows: Sequence[dict[str, Any]], columns: Columns) -> str:
    """A Markdown table; floats have their column's decimals, nan is a dash."""
    lines = ['| ' + ' | '.join(title for title, _, _ in columns) + ' |', '|---' * len(columns) + '|']
    lines += ['| ' + ' | '.join(_cell(row[key], decimals) for _, key, decimals in columns) + ' |' for row in rows]
    return '\n'.join(lines)


def _cell(value: Any, decimals: int) -> str:
    if _is_nan(value):
        return '–'
    return f'{value:.{decimals}f}' if isinstance(value, float) else str(value)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def means_by_hole(rows: Sequence[dict[str, Any]], names: Sequence[str] = metrics.NAMES) -> list[dict[str, Any]]:
    """Means of the metrics by the share of the picture in the hole (row['hole']), then over all rows.

    Returns:
        A row for each bin that is not empty: hole (the bin's name), results (how many), identical (how many of them
        equal their originals and are left out of the mean PSNR) and the means.
    """
    table = []
    for name, (low, high) in HOLE_BINS.items():
        inside = [row for row in rows if low <= row['hole'] < high]
        if inside:
            table.append({'hole': name, 'results': len(inside), 'identical': metrics.n_identical(inside),
                          **metrics.means(inside, names)})
    return table
