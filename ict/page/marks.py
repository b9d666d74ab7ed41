"""What a visitor paints, as a list of marks in the photo's own pixels, and the hole that they make.

A mark is JSON from ``canvas.js``: ``{'tool': 'brush' | 'eraser', 'radius': r, 'points': [x0, y0, x1, y1, ...]}``,
``{'tool': 'invert'}``, or ``{'tool': 'mask', 'number': n}``, which takes the hole from a mask file. Coordinates are
those of the photo, with (0, 0) at its upper left corner and pixel centres at halves, so the size at which a page shows
the photo has no influence.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ict.errors import UserError

Mark = dict[str, Any]
_FARTHEST = 1e6  # pixels; nan is refused, too


def hole_of(marks: Sequence[Mark], height: int, width: int, masks: Sequence[np.ndarray]) -> np.ndarray:
    """The hole after all marks in their order: (height, width) bool.

    Args:
        masks: holes (height, width) bool of the mask files, by number.

    Raises:
        UserError: these are no marks.
    """
    hole = np.zeros((height, width), bool)
    try:
        for mark in marks:
            if mark['tool'] == 'invert':
                hole = ~hole
            elif mark['tool'] == 'mask':
                hole = masks[mark['number']].copy()
            else:
                points = np.array(mark['points'], np.float64).reshape(-1, 2)
                _stroke(hole, points, float(mark['radius']), {'brush': True, 'eraser': False}[mark['tool']])
    except (KeyError, IndexError, TypeError, ValueError):
        raise UserError('the painting cannot be read; load the page anew') from None
    return hole


def _stroke(hole: np.ndarray, points: np.ndarray, radius: float, value: bool) -> None:
    """Set every pixel of ``hole`` whose centre is at most ``radius`` from the broken line through (N, 2) points."""
    if not (np.abs([*points.flat, radius]) < _FARTHEST).all():
        raise ValueError
    height, width = hole.shape
    for start, end in zip(points, [*points[1:], points[-1]], strict=True):
        left, top = np.maximum(np.floor(np.minimum(start, end) - radius), 0).astype(int)
        right, bottom = np.minimum(np.ceil(np.maximum(start, end) + radius), (width, height)).astype(int)
        if left >= right or top >= bottom:
            continue
        x = np.arange(left, right) + 0.5 - start[0]
        y = np.arange(top, bottom)[:, None] + 0.5 - start[1]
        step = end - start
        along = ((x * step[0] + y * step[1]) / max(step @ step, 1e-12)).clip(0, 1)  # foot on the segment, 0 to 1
        near = (x - along * step[0]) ** 2 + (y - along * step[1]) ** 2 <= radius ** 2
        hole[top:bottom, left:right][near] = value
