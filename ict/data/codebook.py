"""The colour palette and the tokens that it makes of pixels (paper, section 3.1)."""
from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import numpy as np

from ict.errors import UserError

REPOSITORY_PALETTE = Path(__file__).resolve().parents[2] / 'kmeans_centers.npy'
_CHUNK = 1 << 14  # pixels at once


def load(path: str | Path) -> np.ndarray:
    """Centres (V, 3) float32 in [-1, 1] from a .npy file; never unpickles.

    Raises:
        UserError: the file is missing, not a .npy, or not a palette.
    """
    try:
        centres = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f'{path}: no such palette file; give one with --kmeans '
                        f'(make one with python -m ict.palette)') from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f'{path}: not a readable .npy palette ({error})') from None
    return checked(centres, str(path))


def checked(centres: np.ndarray, name: str) -> np.ndarray:
    """``centres`` as float32 (V, 3), or a UserError that names where they came from."""
    if not isinstance(centres, np.ndarray) or centres.ndim != 2 or centres.shape[1] != 3 or centres.dtype.kind != 'f':
        raise UserError(f'{name}: a palette is a float array of shape (colours, 3); '
                        f'this is {getattr(centres, "dtype", "?")} {getattr(centres, "shape", "?")}')
    if not 2 <= len(centres) <= 32767:
        raise UserError(f'{name}: a palette has 2 to 32767 colours; this one has {len(centres)}')
    if not np.isfinite(centres).all() or np.abs(centres).max() > 1.0 + 1e-6:
        raise UserError(f'{name}: palette colours must lie in [-1, 1]')
    return np.ascontiguousarray(centres, np.float32)


def find_for_training(given: str | None) -> Path:
    """``--kmeans`` when given, else ./kmeans_centers.npy, else the repository's."""
    if given:
        return Path(given)
    here = Path('kmeans_centers.npy')
    return here if here.is_file() else REPOSITORY_PALETTE


def digest(centres: np.ndarray) -> str:
    """SHA-256 of the float32 values, to tell palettes apart."""
    return hashlib.sha256(np.ascontiguousarray(centres, '<f4').tobytes()).hexdigest()


def to_rgb(centres: np.ndarray) -> np.ndarray:
    """8-bit colours (V, 3) uint8: ``rint(127.5 (c + 1))``, what priors are written as."""
    return np.rint(127.5 * (centres.astype(np.float64) + 1.0)).clip(0, 255).astype(np.uint8)


class Tokenizer:
    """Exact nearest colour of 8-bit pixels: smallest squared distance to ``codebook_rgb``, lowest index on a tie.

    Attributes:
        centres: (V, 3) float32 in [-1, 1].
        codebook_rgb: (V, 3) uint8.
    """

    def __init__(self, centres: np.ndarray) -> None:
        self.centres, self.codebook_rgb = centres, to_rgb(centres)
        self._k = self.codebook_rgb.astype(np.float32)  # all sums below stay under 2 ** 24, so they are exact
        self._squares = (self._k ** 2).sum(1)  # (V,)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """pixels (..., 3) uint8 -> tokens (...) int32."""
        if pixels.dtype != np.uint8 or pixels.shape[-1] != 3:
            raise ValueError(f'expected uint8 (..., 3), got {pixels.dtype} {pixels.shape}')
        flat = pixels.reshape(-1, 3)
        tokens = np.empty(len(flat), np.int32)
        for start in range(0, len(flat), _CHUNK):
            part = flat[start:start + _CHUNK].astype(np.float32)
            tokens[start:start + _CHUNK] = (self._squares - 2 * part @ self._k.T).argmin(1)  # |p - k|^2 - |p|^2
        return tokens.reshape(pixels.shape[:-1])


def neighbours(pixels: np.ndarray, centres: np.ndarray, n: int) -> np.ndarray:
    """The ``n`` nearest centres of each pixel, nearest first: uint8 (N, 3) -> int64 (N, min(n, V)).

    Stage 2's degradation measures against the unrounded centres, as published.
    """
    centres = 127.5 * (centres.astype(np.float64) + 1.0)
    red, green, blue = ((np.arange(256.0)[:, None] - centres[:, axis]) ** 2 for axis in range(3))  # (256, V) each
    pixels = pixels.reshape(-1, 3)
    distance = red[pixels[:, 0]]
    distance += green[pixels[:, 1]]
    distance += blue[pixels[:, 2]]
    if n == 1:
        return distance.argmin(1)[:, None]
    n = min(n, len(centres))
    near = distance <= np.partition(distance, n - 1, axis=1)[:, n - 1:n]
    if near.sum() != n * len(pixels):  # a tie for the last place
        return np.argsort(distance, 1, kind='stable')[:, :n]
    index = np.nonzero(near)[1].reshape(-1, n)
    order = np.argsort(np.take_along_axis(distance, index, 1), 1, kind='stable')
    return np.take_along_axis(index, order, 1)
