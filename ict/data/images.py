"""Pictures in and out: any common file type decoded to 8-bit RGB, PNG written crash-safe."""
from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from ict import files
from ict.errors import UserError

EXTENSIONS = ('.png', '.jpg', '.jpeg', '.jpe', '.jfif', '.webp', '.bmp', '.dib', '.tif', '.tiff')
FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP', 'DIB', 'TIFF')
SMALLEST_SIDE = 8
MAX_PIXELS = 64_000_000
WHITE, BLACK = 255, 0
_ORIENTATION_TAG, _BITS_TAG, _PHOTOMETRIC_TAG, _PLANES_TAG = 0x0112, 0x0102, 0x0106, 0x011C
_SIGNATURES = (b'\x89PNG', b'\xff\xd8', b'RIFF', b'BM', b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
_STRIP = 256  # rows of a large picture that are worked on at once


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Attributes:
        native: (H, W) or (H, W, 2 | 3 | 4), uint8 or uint16: what the file holds, upright (grey, grey + alpha,
            RGB, RGBA); palette pictures and colour spaces other than these as RGB(A), one bit as 0 and 255, and a
            colour that stands for transparency as alpha.
        rgb: (H, W, 3) uint8, what the networks see: transparent pixels laid on ``background``.
        notes: what could not be represented, one line each.
        icc_profile: the file's colour profile, when ``native`` is still in it.
    """

    native: np.ndarray
    rgb: np.ndarray
    notes: list[str] = field(default_factory=list)
    icc_profile: bytes | None = None


def load(path: str | Path, background: int = WHITE, max_pixels: int = MAX_PIXELS,
         too_large: str = 'make it smaller') -> Picture:
    """Decode a PNG, JPEG, WebP, BMP or TIFF of 1, 8 or 16 bits, upright as its EXIF says.

    Args:
        too_large: what the user can do about a picture of more than ``max_pixels`` (0: there is no limit).

    Raises:
        UserError: missing, unreadable, too large or smaller than 8 pixels.
    """
    Image.MAX_IMAGE_PIXELS = None  # our own limit below comes before any pixel is decoded
    try:
        # an open file, not its path: Pillow would map an uncompressed TIFF into memory and garble it when it turns it
        with open(path, 'rb') as stream, Image.open(stream, formats=FORMATS) as opened:
            width, height = opened.size
            if max_pixels and width * height > max_pixels:
                raise UserError(f'{path}: {width} x {height} pixels is over the limit of {max_pixels}; '
                                f'{too_large}')
            if min(width, height) < SMALLEST_SIDE:
                raise UserError(f'{path}: {width} x {height} pixels; the shorter side must have at least '
                                f'{SMALLEST_SIDE}')
            notes = []
            if (frames := _frames(opened)) > 1:
                notes.append(f'{path}: has {frames} frames; the first is used')
            native, profile = _decode(opened, path, notes)
            return Picture(native, to_rgb(native, background), notes, profile)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f'{path}: no such image') from None
    except MemoryError:
        raise UserError(f'{path}: does not fit into memory') from None
    except UnidentifiedImageError:
        raise UserError(f'{path}: unreadable image ({_unidentified(path)})') from None
    except Exception as error:  # decoders raise whatever a damaged file makes them stumble over
        raise UserError(f'{path}: unreadable image ({error})') from None


def load_rgb(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """``load(path).rgb``: (H, W, 3) uint8."""
    return load(path, max_pixels=max_pixels).rgb


def _unidentified(path: str | Path) -> str:
    with open(path, 'rb') as stream:
        known = stream.read(4).startswith(_SIGNATURES)
    return 'damaged, or of a kind that cannot be read; save it anew' if known else 'not a PNG, JPEG, WebP, BMP or TIFF'


def _frames(opened: Image.Image) -> int:
    """How many pictures the file holds; the further ones of an MPO are views of the first."""
    if opened.format == 'MPO':
        return 1
    try:
        return getattr(opened, 'n_frames', 1)
    except Exception:  # a further frame is damaged, the first may be whole
        opened.seek(0)
        return 1


def _decode(opened: Image.Image, path: str | Path, notes: list[str]) -> tuple[np.ndarray, bytes | None]:
    """The pixels as ``Picture.native``, and the colour profile that they are in."""
    tags = getattr(opened, 'tag_v2', {})
    stored = str(opened.tile[0][3]) if opened.tile else ''
    wide = '16' in stored or 16 in tags.get(_BITS_TAG, ())
    if wide and tags.get(_PLANES_TAG) == 2:
        raise UserError(f'{path}: 16 bits in separate planes cannot be read; save it with interleaved channels')
    profile, key = opened.info.get('icc_profile'), opened.info.get('transparency')
    opened.load()
    mode, orientation = opened.mode, _orientation(opened)
    if mode in ('F', 'I') or mode.startswith('I;16'):
        native = np.array(opened)
        if mode == 'F' or native.min() < 0 or native.max() > 65535:
            raise UserError(f'{path}: {mode}-mode pixels (32 bit) cannot be represented; save it with 8 or 16 bits')
        native = native.astype(np.uint16)
        if 'I;12' in stored:
            native = native << 4 | native >> 8
        if tags.get(_PHOTOMETRIC_TAG) == 0 and mode != 'I':
            native = 65535 - native  # a TIFF in which 0 is white
    elif mode in ('1', 'L'):
        native = np.array(opened.convert('L'))
        if isinstance(key, int):
            key *= {'L;2': 85, 'L;4': 17}.get(stored, 1)  # Pillow spreads the grey levels, but not this one
    elif mode in ('P', 'PA', 'LA', 'La', 'RGB', 'RGBA', 'RGBa', 'RGBX'):
        kept = 'RGBA' if mode == 'P' and key is not None else {'P': 'RGB', 'PA': 'RGBA', 'La': 'LA', 'RGBa': 'RGBA',
                                                               'RGBX': 'RGB'}.get(mode, mode)
        native = np.array(opened if kept == mode else opened.convert(kept))
        if wide:
            native = _sixteen_bit(path, native, notes)
            if 'LA;16' in stored:
                native = native[..., [0, 3]]
    else:
        notes.append(f'{path}: {mode} colours are turned into RGB')
        native, profile = np.array(opened.convert('RGB')), None
    if mode != 'P' and key is not None:
        native = _with_alpha(native, key)
    return np.ascontiguousarray(_turned(native, orientation)), profile


def _sixteen_bit(path: str | Path, eight: np.ndarray, notes: list[str]) -> np.ndarray:
    """The colours (H, W, 3 | 4) uint16 of which Pillow keeps the upper eight bits; these when OpenCV reads others."""
    import cv2
    native = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if native is not None and native.dtype == np.uint16 and native.ndim == 3 and native.shape[2] >= eight.shape[2]:
        native = native[..., [2, 1, 0, 3][:eight.shape[2]]]
        if native.shape == eight.shape and all((native[i:i + _STRIP] >> 8 == eight[i:i + _STRIP]).all()
                                               for i in range(0, len(eight), _STRIP)):
            return native
    notes.append(f'{path}: 16 bits a channel are read as 8')
    return eight


def _orientation(opened: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none or the EXIF data is damaged."""
    try:
        found = opened.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # whatever damaged data makes the reader stumble over
        return 1
    return found if found in range(1, 9) else 1


def _turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """A stored array (H, W, ...) upright; a view."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array


def _with_alpha(native: np.ndarray, key: int | tuple[int, ...]) -> np.ndarray:
    """Grey or RGB with an alpha channel that is 0 where a pixel has the colour ``key``."""
    if native.ndim == 2 and isinstance(key, int):
        here = native == key
    elif native.ndim == 3 and native.shape[2] == 3 and isinstance(key, tuple):
        here = (native == np.array(key)).all(-1)
    else:
        return native
    alpha = np.where(here, 0, np.iinfo(native.dtype).max).astype(native.dtype)
    return np.dstack([native, alpha])


def to_rgb(native: np.ndarray, background: int = WHITE) -> np.ndarray:
    """What the networks see of ``native``: (H, W, 3) uint8."""
    if native.dtype == np.uint8 and native.ndim == 3 and native.shape[2] == 3:
        return native
    rgb = np.empty((*native.shape[:2], 3), np.uint8)
    for start in range(0, len(native), _STRIP):
        rgb[start:start + _STRIP] = _strip_to_rgb(native[start:start + _STRIP], background)
    return rgb


def _strip_to_rgb(native: np.ndarray, background: int) -> np.ndarray:
    if native.dtype == np.uint16:
        native = ((native.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if native.ndim == 2:
        return native[..., None]
    if native.shape[2] == 3:
        return native
    colour, alpha = native[..., :-1], native[..., -1:].astype(np.uint32)
    return ((colour * alpha + background * (255 - alpha) + 127) // 255).astype(np.uint8)


def shrink(rgb: np.ndarray, size: int) -> np.ndarray:
    """PIL's antialiased bilinear resize to size x size, as published: uint8 (H, W, 3) -> (size, size, 3)."""
    return np.asarray(Image.fromarray(rgb).resize((size, size), Image.BILINEAR))


def bicubic(rgb: np.ndarray, width: int, height: int) -> np.ndarray:
    """PIL's bicubic resize, as published for stage 2 and its prior: uint8 (H, W, 3) -> (height, width, 3)."""
    return np.asarray(Image.fromarray(rgb).resize((width, height), Image.BICUBIC))


def encode_png(pixels: np.ndarray, icc_profile: bytes | None = None, text: dict[str, str] | None = None) -> bytes:
    """PNG bytes of (H, W), (H, W, 2), (H, W, 3) or (H, W, 4) uint8 or uint16; the same pixels give the same bytes."""
    if pixels.dtype == np.uint16 and pixels.ndim == 3:
        return _encode_sixteen_bit(pixels, icc_profile, text or {})
    buffer = io.BytesIO()
    extra = {'icc_profile': icc_profile} if icc_profile else {}
    if text:
        extra['pnginfo'] = info = PngImagePlugin.PngInfo()
        for key, value in text.items():
            info.add_text(key, value)
    Image.fromarray(pixels).save(buffer, 'PNG', **extra)
    return buffer.getvalue()


def _encode_sixteen_bit(pixels: np.ndarray, icc_profile: bytes | None, text: dict[str, str]) -> bytes:
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
    for key, value in text.items():
        chunk(b'tEXt', key.encode('latin-1') + b'\0' + value.encode('latin-1'))
    packer = zlib.compressobj()
    above = np.zeros((1, width * channels * 2), np.uint8)
    for start in range(0, height, _STRIP):
        rows = pixels[start:start + _STRIP].astype('>u2').reshape(-1, width * channels).view(np.uint8)
        filtered = np.full((len(rows), 1 + rows.shape[1]), 2, np.uint8)  # 2: the filter "up"
        filtered[:, 1:] = rows - np.concatenate([above, rows[:-1]])
        above = rows[-1:]
        if part := packer.compress(filtered):
            chunk(b'IDAT', part)
    chunk(b'IDAT', packer.flush())
    chunk(b'IEND', b'')
    return buffer.getvalue()


def write_png(path: str | Path, pixels: np.ndarray, icc_profile: bytes | None = None,
              text: dict[str, str] | None = None) -> None:
    """Write a PNG crash-safe, making its folder; ``text`` is kept in the file beside the pixels."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, encode_png(pixels, icc_profile, text))


def png_text(path: str | Path) -> dict[str, str]:
    """The text that a PNG carries, {} when it is none."""
    try:
        with Image.open(path, formats=('PNG',)) as opened:
            return dict(opened.text)
    except (OSError, SyntaxError, ValueError):
        return {}
