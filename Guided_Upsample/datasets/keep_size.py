"""A completion at the picture's own size: known pixels are the input's, the hole is the enlarged completion."""
from __future__ import annotations

import cv2
import numpy as np

from ict.geometry import Box, cut

_REACH = 12.0  # model pixels over which a difference at the hole's edge fades into the hole
_RELAXATIONS = 60


def blended(painted: np.ndarray, image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Known pixels and the painted hole without a seam between them, at the model's resolution.

    What the generator gets wrong on known pixels along the hole's edge is carried on into the hole as a membrane
    (Laplace's equation) that fades with the distance.

    Args:
        painted: (S, S, 3) float32 in [0, 1], the generator's picture everywhere.
        image: (S, S, 3) float32 in [0, 1].
        hole: (S, S) bool.
    """
    if not hole.any() or hole.all():
        return np.where(hole[..., None], painted, image)
    known = ~hole
    difference = np.where(hole[..., None], np.float32(0), image - painted)
    membrane = _pull_push(difference, known.astype(np.float32))
    inside = hole[..., None]
    for _ in range(_RELAXATIONS):
        around = cv2.blur(membrane, (3, 3), borderType=cv2.BORDER_REPLICATE)
        membrane = np.where(inside, around, difference)
    distance = cv2.distanceTransform(hole.astype(np.uint8), cv2.DIST_L2, 5)
    fade = np.exp(-distance / _REACH).astype(np.float32)[..., None]
    return np.where(inside, np.clip(painted + membrane * fade, 0.0, 1.0), image)


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
    enlarged = cv2.resize(completed.astype(np.float32), (frame.width, frame.height), interpolation=cv2.INTER_CUBIC)
    colour = np.clip(enlarged, 0.0, 1.0)[hole]  # (n, 3)
    top = np.iinfo(native.dtype).max
    channels = 1 if native.ndim == 2 else native.shape[2]
    if channels <= 2:
        colour = colour @ np.array([[0.299], [0.587], [0.114]], np.float32)  # (n, 1)
    if channels in (2, 4):
        colour = np.concatenate([colour, np.ones((len(colour), 1), np.float32)], 1)  # opaque
    result = native.copy()
    part = cut(result, frame).reshape(frame.height, frame.width, channels)  # a view into ``result``
    part[hole] = (colour * top).astype(native.dtype)
    return result
