"""Pictures: any common file type decoded to its own pixels and to 8-bit RGB; ``ict.data.encode`` writes them."""
from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError

from ict.data import jpeg
from ict.data.encode import eight_bits, on_background
from ict.errors import UserError

EXTENSIONS = ('.png', '.jpg', '.jpeg', '.jpe', '.jfif', '.webp', '.bmp', '.dib', '.tif', '.tiff')
FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP', 'DIB', 'TIFF')
HEIC_EXTENSIONS = ('.heic', '.heif', '.hif')
HEIC_REMEDY = 'HEIC cannot be read here; convert it to JPEG or PNG first (heif-convert photo.heic photo.jpg)'
SMALLEST_SIDE = 8
MAX_PIXELS = 64_000_000
WHITE, BLACK = 255, 0
_TEXT_LIMIT = 1 << 26  # bytes of a PNG's colour profile or one of its texts, unpacked; of all texts four times as many
_ORIENTATION_TAG, _BITS_TAG, _PHOTOMETRIC_TAG, _PLANES_TAG = 0x0112, 0x0102, 0x0106, 0x011C
# Of the tags below 700 those that describe the photograph; the others say how pixels and thumbnails are stored.
_LAST_STORAGE_TAG, _DESCRIPTIONS = 700, (269, 270, 271, 272, 282, 283, 285, 296, 305, 306, 315, 316)
_PROFILE_TAG = 34675  # a TIFF's colour profile, which is kept by itself
# Bits that values in a file of 16 may use without being an ordinary picture, which would be all but black. With 14 a
# dark one might be taken for one of these.
_FEWER_BITS = (8, 10, 12)
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
        notes: what could not be represented, or was taken for granted, one line each.
        icc_profile: the file's colour profile, when ``native`` is still in it.
        exif: what else the file says of the photograph, without its orientation and thumbnail.
        orientation: how the stored pixels were turned, 1 to 8 as EXIF counts.
    """

    native: np.ndarray
    rgb: np.ndarray
    notes: list[str] = field(default_factory=list)
    icc_profile: bytes | None = None
    exif: bytes | None = None
    orientation: int = 1


def load(path: str | Path, background: int = WHITE, max_pixels: int = MAX_PIXELS,
         allow_truncated: bool | None = None) -> Picture:
    """Decode a PNG, JPEG, WebP, BMP or TIFF of 1, 8 or 16 bits, upright as its EXIF says.

    A JPEG that lacks nothing but its end is read.

    Args:
        max_pixels: larger pictures are refused; 0: there is no limit.
        allow_truncated: read files with missing rows, too, as the decoder leaves them. None: no, and the user has
            neither ``--allow_truncated`` nor ``--max_pixels``.

    Raises:
        UserError: missing, unreadable, incomplete, too large or smaller than 8 pixels.
    """
    # Our own limit comes before any pixel is decoded.
    Image.MAX_IMAGE_PIXELS = None
    PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = _TEXT_LIMIT, 4 * _TEXT_LIMIT
    try:
        # an open file, not its path: Pillow would map an uncompressed TIFF into memory and garble it when it turns it
        with open(path, 'rb') as stream:
            try:
                return _read(stream, path, background, max_pixels, allow_truncated is not None)
            except _TruncatedError:
                stream.seek(0)
                content, note = _completed(stream.read(), path, allow_truncated)
            with _tolerant():
                picture = _read(io.BytesIO(content), path, background, max_pixels, True)
            picture.notes.append(note)
            return picture
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f'{path}: no such image') from None
    except MemoryError:
        raise UserError(f'{path}: does not fit into memory') from None
    except UnidentifiedImageError:
        raise UserError(f'{path}: unreadable image ({_unidentified(path)})') from None
    except Exception as error:  # decoders raise whatever a damaged file makes them stumble over
        remedy = '' if getattr(error, 'errno', None) else '; get it again, or save it anew'
        raise UserError(f'{path}: unreadable image ({error}){remedy}') from None


def _read(stream: BinaryIO, path: str | Path, background: int, max_pixels: int, has_option: bool) -> Picture:
    with Image.open(stream, formats=FORMATS) as opened:
        width, height = opened.size
        if max_pixels and width * height > max_pixels:
            raise UserError(f'{path}: {width} x {height} pixels is over the limit of {max_pixels}; '
                            f'{"--max_pixels 0 lifts it" if has_option else "make it smaller"}')
        if min(width, height) < SMALLEST_SIDE:
            raise UserError(f'{path}: {width} x {height} pixels; the shorter side must have at least {SMALLEST_SIDE}')
        notes = []
        if (frames := _frames(opened)) > 1:
            notes.append(f'{path}: has {frames} frames; the first is used')
        return _upright_picture(opened, _turned(opened), path, background, notes)


def _turned(opened: Image.Image) -> int:
    """The orientation of a TIFF, which Pillow forgets when it decodes it, upright; 1 for others."""
    return _orientation(opened) if opened.format == 'TIFF' else 1


def _upright_picture(opened: Image.Image, turned: int, path: str | Path, background: int, notes: list[str]) -> Picture:
    native, profile = _decode(opened, path, notes)
    orientation = _orientation(opened)
    native = np.ascontiguousarray(upright(native, orientation))
    return Picture(native, to_rgb(native, background), notes, profile, _exif(opened), max(turned, orientation))


class _TruncatedError(Exception):
    """The file ends before its pixels do."""


@contextmanager
def _tolerant() -> Iterator[None]:
    """Pillow reads what is there of an incomplete file."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _completed(content: bytes, path: str | Path, allow_truncated: bool | None) -> tuple[bytes, str]:
    """An incomplete file's content as it can be read, and a line about it.

    Raises:
        UserError: pixels are missing, and that isn't allowed.
    """
    missing = 'a part of its pixels is missing'
    if content.startswith(b'\xff\xd8'):
        content, row = jpeg.with_end(content)
        if row is None:
            return content, f'{path}: lacks its end, but no row of its pixels'
        missing = f'its rows from {row} on are missing' if row else missing
    if not allow_truncated:
        raise UserError(f'{path}: incomplete, {missing}; get the file anew' +
                        (', or add --allow_truncated' if allow_truncated is not None else ''))
    return content, f'{path}: incomplete, {missing} and filled as the decoder leaves them'


def of_pil(picture: Image.Image, name: str, background: int = WHITE) -> Picture:
    """What ``load`` gives, of a picture that Pillow holds, which keeps 8 bits of a colour.

    Raises:
        UserError: the file that Pillow reads it from is incomplete; ``name`` says which picture.
    """
    turned = _turned(picture)
    try:
        opened = picture.copy()
    except OSError as error:
        raise UserError(f'{name}: unreadable image ({error})') from None
    return _upright_picture(opened, turned, name, background, [])


def load_rgb(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """``load(path).rgb``: (H, W, 3) uint8."""
    return load(path, max_pixels=max_pixels).rgb


def _unidentified(path: str | Path) -> str:
    with open(path, 'rb') as stream:
        start = stream.read(12)
    if start[4:8] == b'ftyp' and start[8:11] in (b'hei', b'hev', b'mif', b'msf'):
        return HEIC_REMEDY
    known = start.startswith(_SIGNATURES)
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
    tile = getattr(opened, 'tile', ())
    arguments = tile[0][3] if tile else ''
    stored = str(arguments[0] if isinstance(arguments, tuple) else arguments)
    wide = ('16' in stored and not stored.startswith('BGR')) or 16 in tags.get(_BITS_TAG, ())
    if wide and tags.get(_PLANES_TAG) == 2:
        raise UserError(f'{path}: 16 bits in separate planes cannot be read; save it with interleaved channels')
    profile, key = opened.info.get('icc_profile'), opened.info.get('transparency')
    try:
        opened.load()
    except OSError as error:
        if 'truncated' in str(error).lower():
            raise _TruncatedError from None
        raise
    mode = opened.mode
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
    elif native.dtype == np.uint16:
        native = _scaled(path, native, notes)
    return native, profile


def _sixteen_bit(path: str | Path, eight: np.ndarray, notes: list[str]) -> np.ndarray:
    """The colours (H, W, 3 | 4) uint16 of which Pillow keeps the upper eight bits; these when OpenCV reads others."""
    import cv2
    native: np.ndarray | None = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if native is not None and native.dtype == np.uint16 and native.ndim == 3 and native.shape[2] >= eight.shape[2]:
        native = native[..., [2, 1, 0, 3][:eight.shape[2]]]
        if native.shape == eight.shape and all((native[i:i + _STRIP] >> 8 == eight[i:i + _STRIP]).all()
                                               for i in range(0, len(eight), _STRIP)):
            return native
    notes.append(f'{path}: 16 bits a channel are read as 8')
    return eight


def _scaled(path: str | Path, native: np.ndarray, notes: list[str]) -> np.ndarray:
    """Values of 8 to 12 bits in a file of 16 scaled to all of them; but not two values alone, which are a mask's."""
    scaled = native.copy()
    colour = colours_of(scaled)
    highest = int(colour.max())
    bits = next((b for b in _FEWER_BITS if highest < 1 << b), 16)
    others = colour[colour != colour.flat[0]]
    if bits == 16 or not len(others) or (others == others[0]).all():
        return native
    notes.append(f'{path}: its values use {bits} of 16 bits, and are scaled to all of them')
    colour[...] = colour << 16 - bits | colour >> 2 * bits - 16
    return scaled


def colours_of(native: np.ndarray) -> np.ndarray:
    """A picture as its file holds it without its alpha channel: (H, W, 1 | 3), a view."""
    if native.ndim == 2:
        return native[..., None]
    return native[..., :-1] if native.shape[2] in (2, 4) else native


def _exif(opened: Image.Image) -> bytes | None:
    """EXIF data without orientation, thumbnail and what TIFF says there about its pixels; None when nothing is left."""
    try:
        exif = opened.getexif()
        for tag in list(exif):
            if tag == _PROFILE_TAG or (tag <= _LAST_STORAGE_TAG and tag not in _DESCRIPTIONS):
                del exif[tag]
        return exif.tobytes() if len(exif) else None
    except Exception:  # whatever damaged data makes the reader stumble over
        return None


def _orientation(opened: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none or the EXIF data is damaged."""
    try:
        found = opened.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # whatever damaged data makes the reader stumble over
        return 1
    return found if found in range(1, 9) else 1


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """A stored array (H, W, ...) turned as EXIF's orientation says; a view."""
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
        laid = on_background(eight_bits(native[start:start + _STRIP]), background)
        rgb[start:start + _STRIP] = laid[..., None] if laid.ndim == 2 else laid
    return rgb


def shrink(rgb: np.ndarray, size: int) -> np.ndarray:
    """PIL's antialiased bilinear resize to size x size, as published: uint8 (H, W, 3) -> (size, size, 3)."""
    return np.asarray(Image.fromarray(rgb).resize((size, size), Image.Resampling.BILINEAR))


def bicubic(rgb: np.ndarray, width: int, height: int) -> np.ndarray:
    """PIL's bicubic resize, as published for stage 2 and its prior: uint8 (H, W, 3) -> (height, width, 3)."""
    return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC))
