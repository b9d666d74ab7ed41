"""What a person means by a picture that is handed in as a mask: grey levels, above 127 where the hole is."""
from __future__ import annotations

import cv2
import numpy as np

from ict.data.encode import eight_bits
from ict.data.images import Picture, colours_of

_LUMA = np.array([0.299, 0.587, 0.114])
# A picture of two colours, by RGB distances: nearly all pixels lie near one of them, and hardly any of those that are
# not near the commoner one lies off the line between both. Masks of two colours with soft borders pass, after JPEG of
# quality 75 nine of ten (three of four with strokes two pixels thick); of photographs 1 %, of those marked in red,
# white or black up to 10 %.
_NEAR, _NEARLY_ALL, _HARDLY_ANY = 48.0, 0.9, 0.05
_COLOURFUL, _FEW = 32, 0.002  # a pixel's channels differ by more; that share of pixels is compression's doing
_DARK, _BRIGHT = 96, 160  # a grey mask's two levels when 127 lies clearly between them
_BLACK, _WHITE = 32, 223  # further levels are between them; a picture of which half is between them is no mask
MOST = 0.75  # of a mask being hole is seldom meant
_BIN_BITS = 3  # colours are counted in cells of 8 x 8 x 8


def levels_of(picture: Picture, invert: bool) -> np.ndarray | None:
    """Grey levels (H, W) uint8 of a mask.

    One colour and a transparent part: what is drawn is the hole. With ``invert`` it is the transparent part, but for
    dark strokes: there black is said to be the hole. Two colours, whatever they are, also with soft borders
    or after lossy compression: the brighter one (``invert``: the darker one). Else the grey levels themselves. None for
    a picture that is no mask: many colours, or mostly levels between black and white.
    """
    if (found := drawn(picture.native)) is not None:
        opaque, bright = found
        return 255 - opaque if invert and (bright or opaque.mean() > MOST * 255) else opaque
    levels = _of_two_values(picture.native if alpha_of(picture.native) is None else picture.rgb)
    if levels is None:
        levels = _of_many_values(picture.rgb)
    return 255 - levels if invert and levels is not None else levels


def grey_of(rgb: np.ndarray) -> np.ndarray:
    """The published grey levels (H, W) uint8 of (H, W, 3) uint8."""
    return rgb[..., 0] if (rgb == rgb[..., :1]).all() else cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)


def alpha_of(native: np.ndarray) -> np.ndarray | None:
    """The alpha channel (H, W) uint8 of a picture as its file holds it, None where it has none or one without use."""
    if native.ndim == 2 or native.shape[2] == 3:
        return None
    alpha = eight_bits(native[..., -1])
    return None if alpha.min() == 255 else alpha


def drawn(native: np.ndarray) -> tuple[np.ndarray, bool] | None:
    """Of one colour on transparent ground: its opacity (H, W) uint8, and whether the colour is a bright one."""
    alpha = alpha_of(native)
    if alpha is None or alpha.min() == alpha.max():
        return None
    colours = colours_of(native)[alpha > 0]
    if (colours != colours[0]).any():
        return None
    return alpha, bool(_brightness(colours[0]) > np.iinfo(native.dtype).max / 2)


def _of_two_values(native: np.ndarray) -> np.ndarray | None:
    """0 and 255, the latter at the brighter one of exactly two values; None where there are one or more than two."""
    pixels = colours_of(native)
    first = pixels[0, 0]
    other = (pixels != first).any(-1)
    if not other.any():
        return None
    second = pixels[other][0]
    if (pixels[other] != second).any():
        return None
    change = _brightness(second) - _brightness(first)
    return None if change == 0 else np.where(other == (change > 0), np.uint8(255), np.uint8(0))


def _brightness(colour: np.ndarray) -> float:
    """Of a grey level (1,) or RGB (3,)."""
    return float(colour @ _LUMA if len(colour) == 3 else colour[0])


def _of_many_values(rgb: np.ndarray) -> np.ndarray | None:
    grey, ends = grey_of(rgb), two_colours(rgb)
    red, green, blue = cv2.split(rgb)
    spread = cv2.max(cv2.max(red, green), blue) - cv2.min(cv2.min(red, green), blue)
    if np.count_nonzero(spread > _COLOURFUL) <= _FEW * spread.size:
        if ends is None:
            between = np.count_nonzero((grey > _BLACK) & (grey < _WHITE))
            return grey if 2 * between <= grey.size or int(grey.max()) - int(grey.min()) <= _NEAR else None
        if ends[0].mean() < _DARK and ends[1].mean() > _BRIGHT:
            return grey
    if ends is None:
        return None
    step = (ends[1] - ends[0]) * 255 / ((ends[1] - ends[0]) ** 2).sum()
    return cv2.transform(rgb, np.array([[*step, -(ends[0] * step).sum()]]))


def two_colours(rgb: np.ndarray) -> np.ndarray | None:
    """The two colours (2, 3) float64, the darker one first, that (H, W, 3) uint8 consists of; None where of others."""
    side = 256 >> _BIN_BITS
    counts = cv2.calcHist([rgb], [0, 1, 2], None, [side] * 3, [0, 256] * 3)
    colours = np.argwhere(counts) * 255 / (side - 1)  # (N, 3)
    counts = counts[counts > 0].astype(np.float64) / rgb[..., 0].size
    first = colours[counts.argmax()]
    distance = np.linalg.norm(colours - first, axis=1)
    away = distance > _NEAR
    if not away.any():
        return None
    # The other colour is the commonest of the farther half, because what lies between is nearer.
    farther = np.flatnonzero(away)[np.argsort(distance[away])]
    farther = farther[np.cumsum(counts[farther]) >= counts[farther].sum() / 2]
    second = colours[farther[counts[farther].argmax()]]
    line = second - first
    along = ((colours - first) @ line / (line @ line)).clip(0, 1)
    off = np.linalg.norm(colours - first - along[:, None] * line, axis=1) > _NEAR
    near = np.minimum(distance, np.linalg.norm(colours - second, axis=1)) <= _NEAR
    if counts[near].sum() < _NEARLY_ALL or counts[away & off].sum() > _HARDLY_ANY * counts[away].sum():
        return None
    return np.stack(sorted((first, second), key=lambda colour: colour @ _LUMA))
