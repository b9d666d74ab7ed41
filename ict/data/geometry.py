"""From a picture and its mask at their own sizes to what a network sees, so that nothing of the hole gets through.

Sealed: a cell of the small grid belongs to the hole when any pixel that it touches does; the other cells are
averaged over visible pixels only. No pixel under the mask can change any output, bit for bit.
"""
from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

HOLE_LEVEL = 127  # a mask pixel above this, at the mask's own resolution, is hole
GEOMETRIES = ('crop', 'resize', 'hole', 'published')
_CONTEXT = 2.0  # geometry 'hole': side of the frame in sides of the hole
_SMALLEST_FRAME = 256  # pixels, as many as stage 2 paints: in smaller frames, enlarged, holes were filled worse


class Box(NamedTuple):
    """A part of a picture, in its pixels."""

    top: int
    left: int
    height: int
    width: int


def size_of(array: np.ndarray) -> tuple[int, int]:
    """Height and width of an array (H, W, ...)."""
    return array.shape[0], array.shape[1]


def cut(array: np.ndarray, box: Box) -> np.ndarray:
    """That part of an array (H, W, ...)."""
    return array[box.top:box.top + box.height, box.left:box.left + box.width]


def whole(height: int, width: int) -> Box:
    """All of the picture."""
    return Box(0, 0, height, width)


def centre_square(height: int, width: int) -> Box:
    """The largest square, in the middle (rounded down, as published)."""
    side = min(height, width)
    return Box((height - side) // 2, (width - side) // 2, side, side)


def around(extent: Box, height: int, width: int) -> Box:
    """The square of about twice the size of ``extent`` around it, moved and cut to lie in a (height, width) picture.

    Only what is longer than the picture's shorter side gets a frame that is no square.
    """
    longest = max(extent.height, extent.width)
    side = max(int(np.ceil(longest * _CONTEXT)), _SMALLEST_FRAME)
    if longest <= min(height, width):
        side = min(side, height, width)
    spans = []
    for first, length, limit in ((extent.top, extent.height, height), (extent.left, extent.width, width)):
        size = min(side, limit)
        start = (2 * first + length - size) // 2
        spans.append((min(max(start, 0), limit - size), size))
    (top, tall), (left, wide) = spans
    return Box(top, left, tall, wide)


def touched(hole: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a hole (H, W) bool to (height, width) bool: grown to every cell that any hole pixel touches."""
    for axis, size in enumerate((height, width)):
        old = hole.shape[axis]
        if old == size:
            continue
        cell = np.arange(size)
        first = cell * old // size
        last = -(-(cell + 1) * old // size)
        count = np.zeros((hole.shape[0] + 1, hole.shape[1]) if axis == 0 else (hole.shape[0], hole.shape[1] + 1),
                         np.int32)
        np.cumsum(hole, axis=axis, out=count[1:] if axis == 0 else count[:, 1:])
        hole = np.take(count, last, axis) > np.take(count, first, axis)
    return hole


def hole_in(grey: np.ndarray, height: int, width: int, geometry: str) -> tuple[Box, np.ndarray]:
    """The part of a (height, width) picture that 'crop' or 'resize' works on, and its hole at the picture's resolution.

    ``grey`` (h, w) uint8 is the mask at its own size. With the picture's proportions it is laid over the picture;
    with others it goes through the same geometry (its own middle square on the picture's, or squashed).

    Returns:
        The frame and the hole (frame.height, frame.width) bool.
    """
    assert geometry in ('crop', 'resize')
    hole = grey > HOLE_LEVEL
    if geometry == 'crop' and not _same_proportions(hole, height, width):
        frame = centre_square(height, width)
        return frame, touched(cut(hole, centre_square(*hole.shape)), frame.height, frame.width)
    frame = centre_square(height, width) if geometry == 'crop' else whole(height, width)
    return frame, cut(touched(hole, height, width), frame)


class Frame(NamedTuple):
    """A part of a picture that is completed by itself, and the hole (box.height, box.width) bool in it."""

    box: Box
    hole: np.ndarray


def frames_in(grey: np.ndarray, height: int, width: int, geometry: str) -> list[Frame]:
    """The parts of a (height, width) picture that are worked on; see ``hole_in`` for ``grey``.

    There is one, but for geometry 'hole': there each connected group of the hole has a frame of its own, and groups
    whose frames would overlap share one.
    """
    if geometry != 'hole':
        return [Frame(*hole_in(grey, height, width, geometry))]
    hole = touched(grey > HOLE_LEVEL, height, width)
    return [Frame(box, cut(hole, box)) for box in boxes_around(hole)]


def boxes_around(hole: np.ndarray) -> list[Box]:
    """Frames that do not overlap, from top to bottom and left to right, around all groups of a hole (H, W) bool."""
    height, width = hole.shape
    count, _, stats, _ = cv2.connectedComponentsWithStats(hole.astype(np.uint8), connectivity=8)
    extents = [Box(int(top), int(left), int(tall), int(wide)) for left, top, wide, tall, _ in stats[1:count]]
    groups: list[tuple[Box, Box]] = []  # (extent of the hole, frame)
    while extents:
        extent = extents.pop()
        frame = around(extent, height, width)
        near = next((group for group in groups if _overlap(group[1], frame)), None)
        if near is None:
            groups.append((extent, frame))
        else:
            groups.remove(near)
            extents.append(_union(near[0], extent))
    return sorted(frame for _, frame in groups) or [centre_square(height, width)]


def _overlap(a: Box, b: Box) -> bool:
    return (a.top < b.top + b.height and b.top < a.top + a.height
            and a.left < b.left + b.width and b.left < a.left + a.width)


def _union(a: Box, b: Box) -> Box:
    top, left = min(a.top, b.top), min(a.left, b.left)
    return Box(top, left, max(a.top + a.height, b.top + b.height) - top,
               max(a.left + a.width, b.left + b.width) - left)


def reaches_out(grey: np.ndarray, height: int, width: int, geometry: str) -> bool:
    """Whether a part of the hole lies out of the frame that ``hole_in`` gives."""
    if geometry != 'crop':
        return False
    hole = grey > HOLE_LEVEL
    if _same_proportions(hole, height, width):
        hole = touched(hole, height, width)
    return int(cut(hole, centre_square(*hole.shape)).sum()) < int(hole.sum())


def _same_proportions(mask: np.ndarray, height: int, width: int) -> bool:
    return abs(width / height * mask.shape[0] - mask.shape[1]) <= 1.0


def resize_visible(rgb: np.ndarray, hole: np.ndarray, size: int, resample: Image.Resampling) -> np.ndarray:
    """Resize in which hole pixels have no weight: uint8 (H, W, 3), bool (H, W) -> (size, size, 3) uint8.

    Out of the hole's reach it is PIL's antialiased resize with ``resample`` (BILINEAR or BICUBIC), as published;
    within reach a bilinear mean over the visible pixels alone. Where there is none the result is 0.
    """
    if not hole.any():
        return np.asarray(Image.fromarray(np.ascontiguousarray(rgb)).resize((size, size), resample))
    rgb = np.where(hole[..., None], np.uint8(0), rgb)
    out = np.array(Image.fromarray(rgb).resize((size, size), resample))
    near = _in_reach(hole, size, 2 if resample == Image.Resampling.BICUBIC else 1)
    visible = (~hole).astype(np.float32)
    weight = _bilinear(visible, size)
    seen = weight > 1e-4
    for channel in range(3):
        total = _bilinear(rgb[..., channel].astype(np.float32), size)
        mean = np.divide(total, weight, out=np.zeros_like(total), where=seen)
        out[..., channel] = np.where(near, np.rint(mean).clip(0, 255), out[..., channel])
    return out


def _in_reach(hole: np.ndarray, size: int, support: int) -> np.ndarray:
    """Cells (size, size) whose resampling filter may reach a hole pixel."""
    near = touched(hole, size, size).astype(np.uint8)
    radius = [int(np.ceil(support * max(1.0, size / old))) + 1 for old in hole.shape]
    return cv2.dilate(near, np.ones((2 * radius[0] + 1, 2 * radius[1] + 1), np.uint8)).astype(bool)


def _bilinear(values: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(values).resize((size, size), Image.Resampling.BILINEAR))


class ScoredView(NamedTuple):
    """A picture as stage 2 sees and scores it.

    Attributes:
        image: (S, S, 3) uint8, 0 in the hole.
        hole: (S, S) bool.
        original: (S, S, 3) uint8, what results are scored against: the image, and what was in the hole.
    """

    image: np.ndarray
    hole: np.ndarray
    original: np.ndarray


def scored_view(part: np.ndarray, full_hole: np.ndarray, size: int) -> ScoredView:
    """A frame (H, W, 3) uint8 and its hole (H, W) bool at the model's size."""
    image, hole = sealed(part, full_hole, size, Image.Resampling.BICUBIC)
    whole = resize_visible(part, np.zeros_like(full_hole), size, Image.Resampling.BICUBIC)
    return ScoredView(image, hole, np.where(hole[..., None], whole, image))


def sealed(rgb: np.ndarray, hole: np.ndarray, size: int,
           resample: Image.Resampling) -> tuple[np.ndarray, np.ndarray]:
    """What a network with a size x size input sees of a frame and its hole (H, W) bool.

    Returns:
        image (size, size, 3) uint8 with 0 in the hole, hole (size, size) bool.
    """
    small_hole = touched(hole, size, size)
    image = np.array(resize_visible(rgb, hole, size, resample))
    image[small_hole] = 0
    return image, small_hole
