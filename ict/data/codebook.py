"""The colour palette: 512 centres in [-1, 1], exact quantisation, and k-means to fit one.

``python -m ict.palette --data_path FOLDER`` fits a palette to one's own images (paper, section 3.1: pictures
are described by the index of the nearest of 512 colours found by k-means over training pixels).
"""
from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import numpy as np

from ict.errors import UserError

N_COLOURS = 512
REPOSITORY_PALETTE = Path(__file__).resolve().parents[2] / 'kmeans_centers.npy'
_CELL_BITS = 3  # the colour cube is cut into cells of 8 x 8 x 8 colours
_CELLS = 1 << 3 * (8 - _CELL_BITS)
_IN_CELL = 1 << 3 * _CELL_BITS
_CHUNK = 64  # cells filled at once
_INDEX_BITS = 15


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
    """Exact nearest colour of 8-bit pixels: smallest squared distance to ``levels``, the lowest index on a tie.

    A table over the whole colour cube, filled a cell of 8 x 8 x 8 colours at a time when a pixel first needs it.
    Within a cell only those colours can be nearest whose smallest distance to the cell is not above another
    colour's largest one; few are, and the table costs memory only where it is filled.
    """

    def __init__(self, centres: np.ndarray) -> None:
        self.codebook_rgb = to_rgb(centres)  # (V, 3) uint8
        self._k = self.codebook_rgb.astype(np.int32)
        self._table = np.empty(_CELLS * _IN_CELL, np.int16)
        self._filled = np.zeros(_CELLS, bool)
        value = np.arange(256, dtype=np.int32)
        coarse, fine = value >> _CELL_BITS, value & (1 << _CELL_BITS) - 1
        cell_axis, shift = 8 - _CELL_BITS, 3 * _CELL_BITS
        lows = np.arange(0, 256, 1 << _CELL_BITS, dtype=np.int32)[:, None]
        highs = lows + (1 << _CELL_BITS) - 1
        axes = [self._k[None, :, a] for a in range(3)]
        self._nearest = [np.maximum(np.maximum(lows - k, k - highs), 0) ** 2 for k in axes]  # (32, V) each
        self._farthest = [np.maximum(k - lows, highs - k) ** 2 for k in axes]
        self._index = [coarse << shift + (2 - a) * cell_axis | fine << (2 - a) * _CELL_BITS for a in range(3)]

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """pixels (..., 3) uint8 -> tokens (...) int32."""
        if pixels.dtype != np.uint8 or pixels.shape[-1] != 3:
            raise ValueError(f'expected uint8 (..., 3), got {pixels.dtype} {pixels.shape}')
        red, green, blue = self._index
        index = red[pixels[..., 0]] | green[pixels[..., 1]] | blue[pixels[..., 2]]
        cells = np.zeros(_CELLS, bool)
        cells[index.reshape(-1) >> 3 * _CELL_BITS] = True
        missing = np.flatnonzero(cells & ~self._filled)
        for start in range(0, len(missing), _CHUNK):
            self._fill(missing[start:start + _CHUNK])
        return self._table[index].astype(np.int32)

    def _fill(self, cells: np.ndarray) -> None:
        edge, axis_bits = 1 << _CELL_BITS, 8 - _CELL_BITS
        place = np.stack([cells >> 2 * axis_bits, cells >> axis_bits, cells], -1) & (1 << axis_bits) - 1  # (n, 3)
        low = (place * edge)[:, None].astype(np.int32)  # (n, 1, 3)
        nearest = sum(self._nearest[a][place[:, a]] for a in range(3))  # (n, V)
        farthest = sum(self._farthest[a][place[:, a]] for a in range(3))  # (n, V)
        possible = nearest <= farthest.min(1, keepdims=True)
        count = possible.sum(1).max()
        candidates = np.argsort(~possible, 1, kind='stable')[:, :count]  # lowest index first; the rest can't win
        k = self._k[candidates]  # (n, K, 3)
        offset = low + np.arange(edge, dtype=np.int32)[None, :, None]  # (n, 8, 3)
        squares = (offset[:, :, None] - k[:, None]).astype(np.int64) ** 2 << _INDEX_BITS  # (n, 8, K, 3)
        red = squares[..., 0] + candidates[:, None]  # distance and index in one number: ties go to the lowest index
        best = np.full((len(cells), edge, edge, edge), np.iinfo(np.int64).max)
        for j in range(count):
            plane = squares[:, :, None, j, 1] + squares[:, None, :, j, 2]  # (n, 8, 8)
            np.minimum(best, red[:, :, j, None, None] + plane[:, None], out=best)
        self._table.reshape(_CELLS, _IN_CELL)[cells] = (best & (1 << _INDEX_BITS) - 1).reshape(-1, _IN_CELL)
        self._filled[cells] = True


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
