"""Pictures out: PNG, JPEG and WebP, written crash-safe, with the colour profile and EXIF data of their source."""
from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ict import files
from ict.errors import require

FORMAT_ENDINGS = {'png': '.png', 'jpeg': '.jpg', 'webp': '.webp'}  # --save_format
_QUALITY = 95
_LONGEST_SIDE = {'png': 2 ** 31 - 1, 'jpeg': 65_500, 'webp': 16_383}
_JPEG_EXIF_LIMIT = 65_533
_GREY = b'GRAY'
_SPACES = {_GREY: (1, 2), b'RGB ': (1, 2, 3, 4)}  # channels of pictures that carry a profile of this colour space
_STRIP = 256  # rows of a large picture that are worked on at once


def write(path: str | Path, pixels: np.ndarray, save_format: str = 'png', icc_profile: bytes | None = None,
          exif: bytes | None = None) -> None:
    """Write a picture crash-safe, making its folder; see ``encode`` and, for what the format can't hold, ``losses``."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, encode(pixels, save_format, icc_profile, exif))


def encode(pixels: np.ndarray, save_format: str = 'png', icc_profile: bytes | None = None,
           exif: bytes | None = None) -> bytes:
    """The bytes of a file: (H, W), (H, W, 2), (H, W, 3) or (H, W, 4), uint8 or uint16.

    PNG is lossless, and the same pixels give the same bytes. JPEG and WebP have quality 95 and 8 bits; JPEG lays
    transparent pixels on white.

    Raises:
        UserError: larger than the format allows.
    """
    require_fitting(pixels.shape[0], pixels.shape[1], save_format)
    if save_format == 'png' and pixels.dtype == np.uint16 and pixels.ndim == 3:
        return _encode_sixteen_bit(pixels, _fitting(icc_profile, pixels), exif)
    options: dict[str, Any] = {}
    if save_format == 'jpeg':
        options = {'subsampling': 0, 'quality': _QUALITY}
        pixels = on_background(eight_bits(pixels), 255)
        exif = exif if exif and len(exif) <= _JPEG_EXIF_LIMIT else None
    elif save_format == 'webp':  # it keeps the colours of transparent pixels, and knows no grey ones
        options = {'exact': True, 'quality': _QUALITY}
        grey_or_not = Image.fromarray(eight_bits(pixels))
        pixels = np.asarray(grey_or_not.convert('RGBA' if grey_or_not.mode in ('LA', 'RGBA') else 'RGB'))
    options |= {key: value for key, value in (('icc_profile', _fitting(icc_profile, pixels)), ('exif', exif)) if value}
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, save_format, **options)
    return buffer.getvalue()


def require_fitting(height: int, width: int, save_format: str) -> None:
    """A UserError for a picture that is larger than the format allows."""
    require(max(height, width) <= _LONGEST_SIDE[save_format], f'--save_format {save_format}: {width} x {height} pixels '
                                                              f'are more than {_LONGEST_SIDE[save_format]} on a side; '
                                                              f'use png')


def losses(pixels: np.ndarray, save_format: str, icc_profile: bytes | None = None,
           exif: bytes | None = None) -> list[str]:
    """What a file of this format can't hold of a picture, in words."""
    lost = ['16 bits become 8'] if pixels.dtype == np.uint16 and save_format != 'png' else []
    grey = icc_profile is not None and icc_profile[16:20] == _GREY
    if icc_profile and (_fitting(icc_profile, pixels) is None or (grey and save_format == 'webp')):
        lost.append('its colour profile is not one for these pixels')
    if save_format == 'jpeg' and pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        opaque = np.iinfo(pixels.dtype).max
        lost += ['transparent pixels are laid on white'] if (pixels[..., -1] < opaque).any() else []
    if save_format == 'jpeg' and exif and len(exif) > _JPEG_EXIF_LIMIT:
        lost.append('its EXIF data is too long')
    return lost


def eight_bits(pixels: np.ndarray) -> np.ndarray:
    """uint8 or uint16 -> uint8, rounded."""
    return pixels if pixels.dtype == np.uint8 else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def on_background(pixels: np.ndarray, background: int) -> np.ndarray:
    """Grey and alpha or RGBA, uint8, laid on a grey level: (H, W) or (H, W, 3); others as they are."""
    if pixels.ndim == 2 or pixels.shape[2] == 3:
        return pixels
    colour, alpha = pixels[..., :-1], pixels[..., -1:].astype(np.uint32)
    laid = ((colour * alpha + background * (255 - alpha) + 127) // 255).astype(np.uint8)
    return laid[..., 0] if laid.shape[2] == 1 else laid


def _fitting(icc_profile: bytes | None, pixels: np.ndarray) -> bytes | None:
    """The profile, unless it is another kind of pictures'."""
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    return icc_profile if icc_profile and channels in _SPACES.get(icc_profile[16:20], ()) else None


def _encode_sixteen_bit(pixels: np.ndarray, icc_profile: bytes | None, exif: bytes | None) -> bytes:
    """PNG bytes of (H, W, 2 | 3 | 4) uint16, which Pillow can't write, every row as its difference from the last."""
    height, width, channels = pixels.shape
    buffer = io.BytesIO(b'\x89PNG\r\n\x1a\n')
    buffer.seek(0, io.SEEK_END)

    def chunk(kind: bytes, content: bytes) -> None:
        buffer.write(struct.pack('>I', len(content)) + kind + content)
        buffer.write(struct.pack('>I', zlib.crc32(content, zlib.crc32(kind))))

    chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0))
    if icc_profile:
        chunk(b'iCCP', b'ICC Profile\0\0' + zlib.compress(icc_profile))
    if exif:
        chunk(b'eXIf', exif.removeprefix(b'Exif\0\0'))
    packer = zlib.compressobj()
    above = np.zeros((1, width * channels * 2), np.uint8)
    for start in range(0, height, _STRIP):
        rows = pixels[start:start + _STRIP].astype('>u2').reshape(-1, width * channels).view(np.uint8)
        filtered = np.full((len(rows), 1 + rows.shape[1]), 2, np.uint8)  # 2: the filter "up"
        filtered[:, 1:] = rows - np.concatenate([above, rows[:-1]])
        above = rows[-1:]
        if part := packer.compress(filtered.data):
            chunk(b'IDAT', part)
    chunk(b'IDAT', packer.flush())
    chunk(b'IEND', b'')
    return buffer.getvalue()
