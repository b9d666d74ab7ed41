"""Pictures in and out: any common file type decoded to 8-bit RGB, PNG written crash-safe."""
from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from ict import files
from ict.errors import UserError
from ict.geometry import Box, centre_square, cut

__all__ = [
    'EXTENSIONS',
    'Box',
    'Picture',
    'centre_square',
    'cut',
    'encode_png',
    'load',
    'load_rgb',
    'shrink',
    'write_png',
]

EXTENSIONS = ('.png', '.jpg', '.jpeg', '.jpe', '.jfif', '.webp', '.bmp', '.dib', '.tif', '.tiff')
FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP', 'DIB', 'TIFF')
SMALLEST_SIDE = 8
MAX_PIXELS = 64_000_000
WHITE, BLACK = 255, 0
_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Attributes:
        native: (H, W) or (H, W, 2 | 3 | 4), uint8 or uint16: what the file holds, upright (grey, grey + alpha,
            RGB, RGBA); palette pictures and colour spaces other than these as RGB(A).
        rgb: (H, W, 3) uint8, what the networks see: transparent pixels laid on ``background``.
        notes: what could not be represented, one line each.
        icc_profile: the file's colour profile, when ``native`` is still in it.
    """

    native: np.ndarray
    rgb: np.ndarray
    notes: list[str] = field(default_factory=list)
    icc_profile: bytes | None = None


def load(path: str | Path, background: int = WHITE, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode a PNG, JPEG, WebP, BMP or TIFF of 1, 8 or 16 bits, upright as its EXIF says.

    Raises:
        UserError: missing, unreadable, too large (``max_pixels``; 0 lifts the limit) or smaller than 8 pixels.
    """
    Image.MAX_IMAGE_PIXELS = None  # our own limit below comes before any pixel is decoded
    try:
        with Image.open(path, formats=FORMATS) as opened:
            width, height = opened.size
            if max_pixels and width * height > max_pixels:
                raise UserError(f'{path}: {width} x {height} pixels is over the limit of {max_pixels}; '
                                f'--max_pixels 0 lifts it')
            if min(width, height) < SMALLEST_SIDE:
                raise UserError(f'{path}: {width} x {height} pixels; the shorter side must have at least '
                                f'{SMALLEST_SIDE}')
            notes = []
            if getattr(opened, 'n_frames', 1) > 1 and opened.format != 'MPO':
                notes.append(f'{path}: has {opened.n_frames} frames; the first is used')
            native, profile = _decode(opened, path, notes)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f'{path}: no such image') from None
    except Exception as error:  # decoders raise whatever a damaged file makes them stumble over
        reason = 'not a PNG, JPEG, WebP, BMP or TIFF' if type(error).__name__ == 'UnidentifiedImageError' else error
        raise UserError(f'{path}: unreadable image ({reason})') from None
    return Picture(native, _to_rgb(native, background), notes, profile)


def load_rgb(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """``load(path).rgb``: (H, W, 3) uint8."""
    return load(path, max_pixels=max_pixels).rgb


def _decode(opened: Image.Image, path: str | Path, notes: list[str]) -> tuple[np.ndarray, bytes | None]:
    profile = opened.info.get('icc_profile')
    sixteen = opened.format in ('PNG', 'TIFF') and opened.mode in ('RGB', 'RGBA', 'LA') and any(
        '16' in str(tile[3]) for tile in opened.tile)
    if sixteen:
        native = _decode_sixteen_bit(path, opened.getexif().get(_ORIENTATION_TAG, 1))
        if native is not None:
            return native, profile
        notes.append(f'{path}: 16 bits a channel are read as 8')
    upright = ImageOps.exif_transpose(opened)
    mode = upright.mode
    if mode in ('F', 'I') or mode.startswith('I;16'):
        values = np.array(upright)
        if mode == 'F' or values.min() < 0 or values.max() > 65535:
            raise UserError(f'{path}: {mode}-mode pixels (32 bit) cannot be represented; save it with 8 or 16 bits')
        return values.astype(np.uint16), profile
    transparent = 'transparency' in upright.info
    if mode == '1':
        upright = upright.convert('L')
    elif mode in ('P', 'PA'):
        upright = upright.convert('RGBA' if transparent or mode == 'PA' else 'RGB')
    elif mode in ('L', 'RGB') and transparent:
        upright = upright.convert('RGBA')
    elif mode in ('La', 'RGBa'):
        upright = upright.convert({'La': 'LA', 'RGBa': 'RGBA'}[mode])
    elif mode not in ('L', 'LA', 'RGB', 'RGBA'):
        notes.append(f'{path}: {mode} colours are turned into RGB')
        upright, profile = upright.convert('RGB'), None
    return np.array(upright), profile


def _decode_sixteen_bit(path: str | Path, orientation: int) -> np.ndarray | None:
    import cv2
    native = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)  # Pillow would keep 8 bits only
    if native is None or native.dtype != np.uint16 or native.ndim != 3:
        return None
    native = native[..., [2, 1, 0, 3][:native.shape[2]]]
    if orientation in (5, 6, 7, 8):
        native = native.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        native = native[:, ::-1]
    if orientation in (3, 4, 7, 8):
        native = native[::-1]
    return np.ascontiguousarray(native)


def _to_rgb(native: np.ndarray, background: int) -> np.ndarray:
    if native.dtype == np.uint16:
        native = ((native.astype(np.uint32) + 128) // 257).astype(np.uint8)
    channels = 1 if native.ndim == 2 else native.shape[2]
    if channels == 1:
        return np.repeat(native.reshape(*native.shape[:2], 1), 3, axis=2)
    if channels == 3:
        return native
    colour, alpha = native[..., :-1], native[..., -1:].astype(np.uint32)
    if alpha.min() < 255:
        colour = ((colour * alpha + background * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.repeat(colour, 3, axis=2) if colour.shape[2] == 1 else np.ascontiguousarray(colour)


def shrink(rgb: np.ndarray, size: int) -> np.ndarray:
    """PIL's antialiased bilinear resize to size x size, as published: uint8 (H, W, 3) -> (size, size, 3)."""
    return np.asarray(Image.fromarray(rgb).resize((size, size), Image.BILINEAR))


def bicubic(rgb: np.ndarray, width: int, height: int) -> np.ndarray:
    """PIL's bicubic resize, as published for stage 2 and its prior: uint8 (H, W, 3) -> (height, width, 3)."""
    return np.asarray(Image.fromarray(rgb).resize((width, height), Image.BICUBIC))


def encode_png(pixels: np.ndarray, icc_profile: bytes | None = None, text: dict[str, str] | None = None) -> bytes:
    """PNG bytes of (H, W), (H, W, 2), (H, W, 3) or (H, W, 4) uint8 or uint16; the same pixels give the same bytes."""
    if pixels.dtype == np.uint16 and pixels.ndim == 3:
        import cv2
        order = {2: [0, 0, 0, 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[pixels.shape[2]]
        done, encoded = cv2.imencode('.png', pixels[..., order])
        if not done:
            raise RuntimeError('OpenCV could not encode a 16-bit PNG')
        return encoded.tobytes()
    buffer = io.BytesIO()
    extra = {'icc_profile': icc_profile} if icc_profile else {}
    if text:
        extra['pnginfo'] = info = PngImagePlugin.PngInfo()
        for key, value in text.items():
            info.add_text(key, value)
    Image.fromarray(pixels).save(buffer, 'PNG', **extra)
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
