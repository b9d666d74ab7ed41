"""A completion at the picture's own size: known pixels are the input's, the hole is the enlarged completion."""
from __future__ import annotations

import cv2
import numpy as np

from ict.data.geometry import Box, cut

_RELAXATIONS = 60
_STRIP = 256  # rows of a large picture that are enlarged at once


def blended(painted: np.ndarray, image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Known pixels and the painted hole without a seam between them, at the model's resolution.

    The step at the hole's edge, from the painted pixels inside to the known ones outside, is carried on into the hole
    as a membrane (Laplace's equation).

    Args:
        painted: (S, S, 3) float32 in [0, 1], the generator's picture everywhere.
        image: (S, S, 3) float32 in [0, 1].
        hole: (S, S) bool.
    """
    if not hole.any() or hole.all():
        return np.where(hole[..., None], painted, image)
    share = cv2.blur(hole.astype(np.float32), (3, 3), borderType=cv2.BORDER_CONSTANT)
    boundary = (share > 1e-6) & ~hole
    inner = cv2.blur(np.where(hole[..., None], painted, np.float32(0)), (3, 3), borderType=cv2.BORDER_CONSTANT)
    difference = np.where(boundary[..., None], image - inner / np.maximum(share, 1e-6)[..., None], np.float32(0))
    membrane = _pull_push(difference, boundary.astype(np.float32))
    inside = hole[..., None]
    for _ in range(_RELAXATIONS):
        around = cv2.blur(membrane, (3, 3), borderType=cv2.BORDER_REPLICATE)
        membrane = np.where(inside, around, difference)
    return np.where(inside, np.clip(painted + membrane, 0.0, 1.0), image)


def _pull_push(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Fill values (H, W, 3) where weight (H, W) is 0 from coarser and coarser means."""
    if weight.min() > 0 or min(weight.shape) < 2:
        return values
    half = weight.shape[1] // 2, weight.shape[0] // 2
    coarse_weight = cv2.resize(weight, half, interpolation=cv2.INTER_AREA)
    coarse = cv2.resize(values * weight[..., None], half, interpolation=cv2.INTER_AREA)
    coarse = coarse / np.maximum(coarse_weight, 1e-6)[..., None]
    filled = _pull_push(coarse, (coarse_weight > 0).astype(np.float32))
    enlarged = cv2.resize(filled, weight.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return np.where(weight[..., None] > 0, values, enlarged)


def at_own_size(native: np.ndarray, frame: Box, hole: np.ndarray, completed: np.ndarray) -> np.ndarray:
    """The picture with its hole filled, in its own size, channels and depth.

    Args:
        native: (H, W) or (H, W, 2 | 3 | 4) uint8 or uint16, as the file has it.
        frame: the part of it that was completed.
        hole: (frame.height, frame.width) bool; every other pixel stays what it is, bit for bit.
        completed: (S, S, 3) float32 in [0, 1], what the frame became.
    """
    result = native.copy()
    part = cut(result[..., None] if native.ndim == 2 else result, frame)  # a view into ``result``
    rows = np.flatnonzero(hole.any(1))
    if not len(rows):
        return result
    kind = cv2.INTER_AREA if frame.width < completed.shape[1] else cv2.INTER_CUBIC
    wide = cv2.resize(completed.astype(np.float32), (frame.width, completed.shape[0]), interpolation=kind)
    for start in range(rows[0], rows[-1] + 1, _STRIP):
        inside = hole[start:start + _STRIP]
        colour = _rows_of(wide, frame.height, start, start + len(inside))[inside]  # (n, 3)
        part[start:start + _STRIP][inside] = _stored(np.clip(colour, 0.0, 1.0), part.shape[2], native.dtype)
    return result


def _rows_of(wide: np.ndarray, height: int, start: int, stop: int) -> np.ndarray:
    """Rows ``start`` to ``stop`` of (S, W, 3) float32 resized to (height, W, 3): bicubic, or the mean when it shrinks.

    A picture of 50 megapixels would take 600 MB as floats, so it is never enlarged as a whole.
    """
    if height < len(wide):
        return cv2.resize(wide, (wide.shape[1], height), interpolation=cv2.INTER_AREA)[start:stop]
    position = (np.arange(start, stop) + 0.5) * (len(wide) / height) - 0.5
    first = np.floor(position).astype(int)
    offset = (position - first).astype(np.float32)
    rows = np.zeros((stop - start, *wide.shape[1:]), np.float32)
    for tap in (-1, 0, 1, 2):
        rows += _cubic(np.abs(offset - tap))[:, None, None] * wide[np.clip(first + tap, 0, len(wide) - 1)]
    return rows


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.75, OpenCV's bicubic one."""
    near = (1.25 * distance - 2.25) * distance ** 2 + 1.0
    far = ((-0.75 * distance + 3.75) * distance - 6.0) * distance + 3.0
    return np.where(distance <= 1.0, near, far)


def _stored(colour: np.ndarray, channels: int, kind: np.dtype) -> np.ndarray:
    """RGB (n, 3) in [0, 1] as opaque pixels (n, channels) of a picture's own kind, truncated as published."""
    if channels <= 2:
        colour = colour @ np.array([[0.299], [0.587], [0.114]], np.float32)  # (n, 1)
    if channels in (2, 4):
        colour = np.concatenate([colour, np.ones((len(colour), 1), np.float32)], 1)
    return (colour * np.iinfo(kind).max).astype(kind)
