"""Masks: reading them (white = hole), and drawing random ones."""
from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ict.data import images
from ict.data.geometry import HOLE_LEVEL
from ict.data.mask_levels import MOST, alpha_of, drawn, grey_of, levels_of
from ict.errors import UserError

_NEARLY_BLACK = 16  # what lossy compression makes of black
_PROPORTIONS = 0.02
# The published free-form strokes (Yu et al., "Free-Form Image Inpainting with Gated Convolution", algorithm 1).
STROKE_CANVAS = 256
_PARTS, _VERTICES, _LENGTH, _BRUSH, _THINNEST_BRUSH = 10, 20, 100, 24, 10


def load(path: str | Path, invert: bool = False, dilate: int = 0, max_pixels: int = images.MAX_PIXELS) -> np.ndarray:
    """A mask file as grey levels (H, W) uint8, hole above 127; see ``mask_levels.levels_of``.

    Args:
        invert: black is the hole in the file.
        dilate: grow the hole by so many mask pixels in every direction.

    Raises:
        UserError: missing, unreadable or no mask.
    """
    return read(path, invert, dilate, max_pixels)[0]


def read(path: str | Path, invert: bool, dilate: int, max_pixels: int, allow_truncated: bool | None = None,
         published: bool = False) -> tuple[np.ndarray, list[str]]:
    """What ``load`` gives, and lines for the user: what the file has beyond a mask, and what was taken for granted.

    Args:
        allow_truncated: see ``images.load``.
        published: the grey levels as they are.
    """
    picture = images.load(path, images.WHITE if invert else images.BLACK, max_pixels, allow_truncated)
    if published:
        levels = grey_of(picture.rgb)
        levels = grown(255 - levels if invert else levels, dilate)
    else:
        levels = interpreted(picture, str(path), invert, dilate)
    on_clear = not published and drawn(picture.native) is not None
    kinds = ('what is drawn', 'the transparent part') if on_clear else ('white', 'black')
    return levels, [*picture.notes, *remarks(path, levels, invert, dilate, kinds)]


def interpreted(picture: images.Picture, name: str, invert: bool, dilate: int) -> np.ndarray:
    """What a person means by a mask, as grey levels (H, W) uint8, hole above 127.

    Raises:
        UserError: a picture of many colours is no mask; ``name`` says which.
    """
    levels = levels_of(picture, invert)
    if levels is None:
        alpha = '' if alpha_of(picture.native) is None else \
            '; for the transparent part of the pictures themselves say alpha instead'
        raise UserError(f'{name}: has many colours or shades, so it is no mask; a mask is a picture of two, white '
                        f'where the hole is and black elsewhere, best a PNG{alpha}')
    return grown(levels, dilate)


def remarks(path: str | Path, levels: np.ndarray, invert: bool, dilate: int,
            kinds: tuple[str, str]) -> list[str]:
    """A line where the hole is most of a mask (h, w) uint8, and one where its border is soft.

    Args:
        kinds: what the hole is without ``invert``, and with it.
    """
    lines = []
    if (share := np.count_nonzero(levels > HOLE_LEVEL) / levels.size) > MOST:
        remedy = f'{kinds[0]} is the hole, leave --invert_mask out' if invert else \
            f'{kinds[1]} is the hole, add --invert_mask'
        lines.append(f'{path}: {share:.0%} of it is hole; if {remedy}')
    touched = np.count_nonzero(levels > _NEARLY_BLACK)
    between = np.count_nonzero((levels > _NEARLY_BLACK) & (levels < 255 - _NEARLY_BLACK))
    if not dilate and between > touched / 3:
        lines.append(f'{path}: {between / touched:.0%} of the pixels that it touches are between black and white; '
                     f'where a rim of what was removed stays, add --dilate 3')
    return lines


def of_alpha(path: str | Path, picture: images.Picture, invert: bool, dilate: int) -> np.ndarray:
    """The transparent part of a picture as its mask: grey levels (H, W) uint8, hole above 127 (``invert``: the rest).

    Raises:
        UserError: there is none.
    """
    alpha = alpha_of(picture.native)
    if alpha is None or alpha.min() > HOLE_LEVEL:
        raise UserError(f'{path}: has no transparent part that could be filled; give a mask, white where the hole is')
    return grown(alpha if invert else 255 - alpha, dilate)


def grown(levels: np.ndarray, dilate: int) -> np.ndarray:
    """``levels`` (H, W) uint8 with the hole grown by ``dilate`` pixels."""
    hole = levels > HOLE_LEVEL
    if dilate and hole.any():
        distance = cv2.distanceTransform((~hole).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        rounding = 0.25 / (dilate + 1)  # the next larger distance is more than twice as far away
        levels = np.where(distance <= dilate + rounding, np.uint8(255), levels)
    return np.ascontiguousarray(levels)


def fitted(levels: np.ndarray, height: int, width: int, orientation: int) -> np.ndarray:
    """A mask that has the proportions of the stored pixels of a picture, and not those of the upright one, turned too.

    Args:
        levels: (h, w) uint8 of any size.
        height, width: of the upright picture. orientation: see ``images.Picture``.
    """
    sideways = orientation >= 5 and same_proportions(levels, width, height)
    if not sideways or same_proportions(levels, height, width):
        return levels
    return np.ascontiguousarray(images.upright(levels, orientation))


def same_proportions(levels: np.ndarray, height: int, width: int) -> bool:
    """Whether a mask's sides are to each other as a picture's, to 2 %."""
    ratio = levels.shape[1] * height / (levels.shape[0] * width)
    return abs(ratio - 1) <= _PROPORTIONS


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
            cv2.line(canvas, (x, y), (to_x, to_y), (1,), brush)
            cv2.circle(canvas, (x, y), brush // 2, (1,), -1)
            x, y = to_x, to_y
        cv2.circle(canvas, (x, y), brush // 2, (1,), -1)
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
