"""Masks: reading them (white = hole), and drawing random ones."""
from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ict.data import images
from ict.data.geometry import HOLE_LEVEL

# The published free-form strokes (Yu et al., "Free-Form Image Inpainting with Gated Convolution", algorithm 1).
STROKE_CANVAS = 256
_PARTS, _VERTICES, _LENGTH, _BRUSH, _THINNEST_BRUSH = 10, 20, 100, 24, 10


def load(path: str | Path, invert: bool = False, dilate: int = 0, max_pixels: int = images.MAX_PIXELS) -> np.ndarray:
    """A mask file as grey levels (H, W) uint8, 255 = hole; transparent pixels are known ones.

    Args:
        invert: black is the hole in the file.
        dilate: grow the hole by so many mask pixels in every direction.

    Raises:
        UserError: missing or unreadable.
    """
    return read(path, invert, dilate, max_pixels)[0]


def read(path: str | Path, invert: bool, dilate: int, max_pixels: int,
         **more: str) -> tuple[np.ndarray, list[str]]:
    """What ``load`` gives, and one line each for what the file has beyond it (further frames)."""
    picture = images.load(path, images.WHITE if invert else images.BLACK, max_pixels, **more)
    return adjusted(grey(picture.rgb), invert, dilate), picture.notes


def grey(rgb: np.ndarray) -> np.ndarray:
    """Levels (H, W) uint8 of a mask's colours (H, W, 3) uint8."""
    return rgb[..., 0] if (rgb == rgb[..., :1]).all() else cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)


def adjusted(grey: np.ndarray, invert: bool, dilate: int) -> np.ndarray:
    """``grey`` (H, W) uint8 inverted and grown as asked."""
    if invert:
        grey = 255 - grey
    hole = grey > HOLE_LEVEL
    if dilate and hole.any():
        distance = cv2.distanceTransform((~hole).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        rounding = 0.25 / (dilate + 1)  # the next larger distance is more than twice as far away
        grey = np.where(distance <= dilate + rounding, np.uint8(255), grey)
    return np.ascontiguousarray(grey)


def strokes(rng: np.random.Generator, height: int = STROKE_CANVAS, width: int = STROKE_CANVAS) -> np.ndarray:
    """A free-form mask (height, width) bool: 1 to 10 broken lines of 0 to 20 strokes, 10 to 24 pixels thick.

    Lengths are those of a 256 x 256 canvas.
    """
    canvas = np.zeros((height, width), np.uint8)
    for _ in range(rng.integers(1, _PARTS, endpoint=True)):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        brush = _THINNEST_BRUSH
        for vertex in range(rng.integers(_VERTICES, endpoint=True)):
            angle = np.deg2rad(rng.integers(360, endpoint=True))
            angle = -angle if vertex % 2 == 0 else angle
            length = rng.integers(_LENGTH, endpoint=True)
            brush = int(rng.integers(_THINNEST_BRUSH, _BRUSH, endpoint=True)) // 2 * 2
            to_x = int(np.clip(x + length * np.cos(angle), 0, width - 1))
            to_y = int(np.clip(y + length * np.sin(angle), 0, height - 1))
            cv2.line(canvas, (x, y), (to_x, to_y), 1, brush)
            cv2.circle(canvas, (x, y), brush // 2, 1, -1)
            x, y = to_x, to_y
        cv2.circle(canvas, (x, y), brush // 2, 1, -1)
    return canvas.astype(bool)


def strokes_within(rng: np.random.Generator, lowest: float, highest: float, size: int = STROKE_CANVAS,
                   tries: int = 1000) -> np.ndarray:
    """A free-form mask whose hole takes between ``lowest`` and ``highest`` of the canvas.

    Raises:
        ValueError: none of ``tries`` masks did.
    """
    for _ in range(tries):
        hole = strokes(rng, size, size)
        if lowest <= hole.mean() <= highest:
            return hole
    raise ValueError(f'no mask with a hole of {lowest} to {highest} in {tries} tries')


def block(rng: np.random.Generator, size: int) -> np.ndarray:
    """A square block of half the side at a random place: (size, size) bool."""
    half = size // 2
    top, left = rng.integers(size - half, size=2, endpoint=True)
    hole = np.zeros((size, size), bool)
    hole[top:top + half, left:left + half] = True
    return hole
