"""Picture files of every kind, made in the tests, and both stages on them."""
from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageCms, ImageOps

from Guided_Upsample import infer as stage_2
from tests.conftest import DEVICE
from Transformer import infer as stage_1

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
GREY, RGB, GREY_ALPHA, RGBA = 0, 2, 4, 6  # PNG's colour types


def noise(seed: int, height: int, width: int, channels: int = 3, kind: type = np.uint8) -> np.ndarray:
    """(height, width, channels), without the last axis for one channel."""
    values = np.random.default_rng(seed).integers(0, np.iinfo(kind).max, (height, width, channels), kind, endpoint=True)
    return values[..., 0] if channels == 1 else values


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels as Pillow's own transpositions put them upright."""
    how = {2: 'FLIP_LEFT_RIGHT', 3: 'ROTATE_180', 4: 'FLIP_TOP_BOTTOM', 5: 'TRANSPOSE', 6: 'ROTATE_270',
           7: 'TRANSVERSE', 8: 'ROTATE_90'}.get(orientation)
    if how is None:
        return pixels
    planes = np.moveaxis(pixels if pixels.ndim == 3 else pixels[..., None], -1, 0).astype(np.int32)
    result = np.stack([np.asarray(Image.fromarray(np.ascontiguousarray(plane)).transpose(Image.Transpose[how]))
                       for plane in planes], -1).astype(pixels.dtype)
    return result if pixels.ndim == 3 else result[..., 0]


def png(pixels: np.ndarray, depth: int, colour: int, extra: tuple[tuple[bytes, bytes], ...] = ()) -> bytes:
    """A PNG of any depth with further chunks before the pixels."""
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))
    height, width = pixels.shape[:2]
    if depth == 16:
        rows = pixels.astype('>u2').reshape(height, -1).view(np.uint8)
    else:
        bits = np.unpackbits(pixels.reshape(height, -1, 1).astype(np.uint8), axis=-1)[..., 8 - depth:]
        rows = np.packbits(bits.reshape(height, -1), axis=1)
    packed = zlib.compress(np.concatenate([np.zeros((height, 1), np.uint8), rows], 1).tobytes())
    head = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)
    chunks = ((b'IHDR', head), *extra, (b'IDAT', packed), (b'IEND', b''))
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*parts) for parts in chunks)


def tiff(pixels: np.ndarray, order: str = '<', orientation: int = 1, photometric: int | None = None,
         separate: bool = False) -> bytes:
    """An uncompressed TIFF of 8 or 16 bits in one strip a plane."""
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    stored = pixels.astype(pixels.dtype.newbyteorder(order)).reshape(height, width, channels)
    planes = [stored[..., c].tobytes() for c in range(channels)] if separate else [stored.tobytes()]
    photometric = (1 if channels <= 2 else 2) if photometric is None else photometric
    tags = {256: [width], 257: [height], 258: [8 * pixels.itemsize] * channels, 259: [1], 262: [photometric],
            273: [0] * len(planes), 274: [orientation], 277: [channels], 278: [height],
            279: [len(p) for p in planes], 284: [2 if separate else 1]} | ({338: [2]} if channels in (2, 4) else {})
    start = 10 + 12 * len(tags) + 4
    place = start + sum(4 * len(v) for v in tags.values() if len(v) > 1)
    tags[273] = [place + sum(map(len, planes[:i])) for i in range(len(planes))]
    entries, further = b'', b''
    for tag, values in sorted(tags.items()):
        letter, kind = ('I', 4) if tag in (273, 279) else ('H', 3)
        content = struct.pack(f'{order}{len(values)}{letter}', *values).ljust(4, b'\0')
        if len(content) > 4:
            further += (content := content.ljust(4 * len(values), b'\0'))
            content = struct.pack(order + 'I', start + len(further) - len(content))
        entries += struct.pack(order + 'HHI', tag, kind, len(values)) + content
    head = {'<': b'II', '>': b'MM'}[order] + struct.pack(order + 'HIH', 42, 8, len(tags))
    return head + entries + bytes(4) + further + b''.join(planes)


def exif(orientation: int, more: int = 0) -> bytes:
    """EXIF data with an orientation, and so many further bytes."""
    return b'Exif\0\0II*\0' + struct.pack('<IHHHIII', 8, 1, 0x0112, 3, 1, orientation, 0) + bytes(more)


def encoded(picture: Image.Image, kind: str, **more: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **more)
    return buffer.getvalue()


def upright(content: bytes, mode: str) -> np.ndarray:
    """What Pillow itself makes of a lossy file."""
    with Image.open(BytesIO(content)) as opened:
        return np.asarray(ImageOps.exif_transpose(opened).convert(mode))


def usual_mask(height: int, width: int) -> np.ndarray:
    """A block, a line one pixel wide that begins just above the level, and a pixel just below it."""
    mask = np.zeros((height, width), np.uint8)
    mask[height // 3:height // 2, width // 4:width // 2] = 255
    mask[:, 3 * width // 4] = 255
    mask[:2, 3 * width // 4] = 128
    mask[0, 0] = 127
    return mask


def grown(hole: np.ndarray, height: int, width: int) -> np.ndarray:
    """A hole at another size: each pixel of it that overlaps a hole pixel."""
    def overlap(new: int, old: int) -> np.ndarray:
        i, j = np.arange(new)[:, None], np.arange(old)
        return (j * new < (i + 1) * old) & ((j + 1) * new > i * old)
    return overlap(height, hole.shape[0]).astype(int) @ hole @ overlap(width, hole.shape[1]).T.astype(int) > 0


def complete(tiny, place: dict[str, Path], geometry_name: str = 'resize', first: tuple = (), second: tuple = (),
             common: tuple = ()) -> tuple[int, int]:
    """Both stages at the pictures' own sizes, as quickly as can be."""
    shared = [str(a) for a in ('--geometry', geometry_name, '--device_target', DEVICE, *common)]
    return (stage_1.main(['--ckpt_path', str(tiny['transformer']), '--image_url', str(place['images']), '--mask_url',
                          str(place['masks']), '--save_url', str(place['save'] / 'AP'), '--sample_steps', '1', *shared,
                          *map(str, first)]),
            stage_2.main(['--ckpt_path', str(tiny['generator']), '--input', str(place['images']), '--mask',
                          str(place['masks']), '--prior', str(place['save'] / 'AP'), '--save_path', str(place['save']),
                          '--image_size', '32', '--keep_size', *shared, *map(str, second)]))


def places(folder: Path) -> dict[str, Path]:
    found = {name: folder / name for name in ('images', 'masks', 'save')}
    for path in found.values():
        path.mkdir(parents=True)
    return found


def png_kind(content: bytes) -> tuple[int, int]:
    """Bits a channel and colour type of a PNG."""
    assert content.startswith(b'\x89PNG\r\n\x1a\n') and content[12:16] == b'IHDR'
    return content[24], content[25]


def pixels_of(path: Path) -> np.ndarray:
    """A result's pixels, read by others than the code under test."""
    if png_kind(path.read_bytes()) in ((8, GREY_ALPHA), (8, RGB), (8, RGBA), (8, GREY), (16, GREY)):
        return np.asarray(Image.open(path))
    read = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    return read[..., {RGB: [2, 1, 0], RGBA: [2, 1, 0, 3], GREY_ALPHA: [0, 3]}[png_kind(path.read_bytes())[1]]]
