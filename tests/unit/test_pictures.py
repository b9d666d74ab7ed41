"""Any picture in, the same picture with its hole filled out: file types, depths, rotations, sizes, masks and names."""
from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from Guided_Upsample import infer as stage_2
from Guided_Upsample.datasets import compositing
from ict import errors, files
from ict.command import run
from ict.data import geometry, images, masks, pairs
from ict.errors import UserError
from ict.log import one_line
from tests.conftest import DEVICE, files_of, photograph
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


# ---------------------------------------------------------------- files that Pillow can't write

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


# ---------------------------------------------------------------- the table

@dataclass(frozen=True)
class Case:
    """A picture file and what its completion must be.

    Attributes:
        content: the file.
        native: (H, W[, C]), the upright pixels that every known pixel must keep.
        png: bits a channel and colour type of the result.
        mask: the mask's file name and content, or None for ``usual_mask``.
        hole: where the hole is, for a mask that isn't ``usual_mask``.
        says: what is said about the picture.
    """

    content: bytes
    native: np.ndarray
    png: tuple[int, int]
    mask: tuple[str, bytes] | None = None
    hole: np.ndarray | None = None
    says: str = ''


def encoded(picture: Image.Image, kind: str, **more: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **more)
    return buffer.getvalue()


def upright(content: bytes, mode: str) -> np.ndarray:
    """What Pillow itself makes of a lossy file."""
    with Image.open(BytesIO(content)) as opened:
        return np.asarray(ImageOps.exif_transpose(opened).convert(mode))


def usual_mask(height: int, width: int) -> np.ndarray:
    """A block, a line one pixel wide, and a pixel just below the level."""
    mask = np.zeros((height, width), np.uint8)
    mask[height // 3:height // 2, width // 4:width // 2] = 255
    mask[:, 3 * width // 4] = 128
    mask[0, 0] = 127
    return mask


def grown(hole: np.ndarray, height: int, width: int) -> np.ndarray:
    """A hole at another size: each pixel of it that overlaps a hole pixel."""
    def overlap(new: int, old: int) -> np.ndarray:
        i, j = np.arange(new)[:, None], np.arange(old)
        return (j * new < (i + 1) * old) & ((j + 1) * new > i * old)
    return overlap(height, hole.shape[0]).astype(int) @ hole @ overlap(width, hole.shape[1]).T.astype(int) > 0


def table() -> dict[str, Case]:
    """Pictures by file name."""
    h, w = 30, 23
    cases: dict[str, Case] = {}
    rgb, rgba, grey = noise(0, h, w), noise(1, h, w, 4), noise(2, h, w, 1)
    la = noise(3, h, w, 2)
    deep = {c: noise(4 + c, h, w, c, np.uint16) for c in (1, 2, 3, 4)}
    picture, bits = Image.fromarray(rgb), grey > 127
    paletted = picture.quantize(16)
    index, colours = np.asarray(paletted), np.asarray(paletted.getpalette()).reshape(-1, 3)
    looked_up = colours[index].astype(np.uint8)

    def frames() -> list[Image.Image]:
        return [Image.fromarray(noise(20 + i, h, w)) for i in range(3)]

    def add(name: str, content: bytes, native: np.ndarray, kind: tuple[int, int], **more: object) -> None:
        cases[name] = Case(content, native, kind, **more)

    def with_alpha(native: np.ndarray, clear: np.ndarray) -> np.ndarray:
        return np.dstack([native, np.where(clear, 0, np.iinfo(native.dtype).max).astype(native.dtype)])

    # PNG
    for depth in (1, 2, 4):
        few = grey >> 8 - depth
        spread = few * np.uint8(255 // (2 ** depth - 1))
        add(f'png grey {depth} bit.png', png(few, depth, GREY), spread, (8, GREY))
        add(f'png grey {depth} bit clear colour.png', png(few, depth, GREY, ((b'tRNS', struct.pack('>H', 1)),)),
            with_alpha(spread, few == 1), (8, GREY_ALPHA))
    add('png L.png', encoded(Image.fromarray(grey), 'PNG'), grey, (8, GREY))
    add('png LA.png', encoded(Image.fromarray(la), 'PNG'), la, (8, GREY_ALPHA))
    add('png RGB.png', encoded(picture, 'PNG'), rgb, (8, RGB))
    add('png RGBA.png', encoded(Image.fromarray(rgba), 'PNG'), rgba, (8, RGBA))
    add('png L clear colour.png', png(grey // 64, 8, GREY, ((b'tRNS', struct.pack('>H', 2)),)),
        with_alpha(grey // 64, grey // 64 == 2), (8, GREY_ALPHA))
    add('png RGB clear colour.png', png(rgb // 128, 8, RGB, ((b'tRNS', struct.pack('>3H', 1, 0, 1)),)),
        with_alpha(rgb // 128, (rgb // 128 == [1, 0, 1]).all(-1)), (8, RGBA))
    add('png P.png', encoded(paletted, 'PNG'), looked_up, (8, RGB))
    add('png P one clear.png', encoded(paletted, 'PNG', transparency=3), with_alpha(looked_up, index == 3), (8, RGBA))
    some = np.arange(0, 256, 16, dtype=np.uint8)
    add('png P alphas.png', encoded(paletted, 'PNG', transparency=some.tobytes()),
        np.dstack([looked_up, some[index]]), (8, RGBA))
    add('png P 2 bit.png', png(index % 4, 2, 3, ((b'PLTE', colours[:4].astype(np.uint8).tobytes()),)),
        colours[index % 4].astype(np.uint8), (8, RGB))
    for channels, colour in ((1, GREY), (2, GREY_ALPHA), (3, RGB), (4, RGBA)):
        add(f'png 16 bit {channels}.png', png(deep[channels], 16, colour), deep[channels], (16, colour))
    two = deep[1] // 32768 * 999
    add('png 16 bit clear colour.png', png(two, 16, GREY, ((b'tRNS', struct.pack('>H', 999)),)),
        with_alpha(two, two == 999), (16, GREY_ALPHA))
    two = deep[3] // 32768 * 999
    add('png 16 bit RGB clear colour.png', png(two, 16, RGB, ((b'tRNS', struct.pack('>3H', 999, 0, 0)),)),
        with_alpha(two, (two == [999, 0, 0]).all(-1)), (16, RGBA))
    turn = exif(6)[6:]
    add('png EXIF 6.png', encoded(picture, 'PNG', exif=turn), turned(rgb, 6), (8, RGB))
    add('png 16 bit EXIF 6.png', png(deep[3], 16, RGB, ((b'eXIf', turn),)), turned(deep[3], 6), (16, RGB))
    add('png damaged EXIF.png', png(rgb, 8, RGB, ((b'eXIf', b'junk'),)), rgb, (8, RGB))
    add('png animated.png', encoded(frames()[0], 'PNG', save_all=True, append_images=frames()[1:]),
        np.asarray(frames()[0]), (8, RGB), says='has 3 frames; the first is used')
    add('png profile.png', encoded(picture, 'PNG', icc_profile=SRGB), rgb, (8, RGB))
    packed = zlib.compress(SRGB)
    add('png 16 bit profile.png', png(deep[3], 16, RGB, ((b'iCCP', b'sRGB\0\0' + packed),)), deep[3], (16, RGB))
    # JPEG
    smooth = Image.fromarray(photograph(5, h, w))
    for name, mode, more in (('L', 'L', {}), ('RGB', 'RGB', {}), ('progressive', 'RGB', {'progressive': True}),
                             ('profile', 'RGB', {'icc_profile': SRGB}), ('huge EXIF', 'RGB', {'exif': exif(1, 65000)}),
                             ('damaged EXIF', 'RGB', {'exif': b'Exif\0\0junkjunk'}),
                             ('odd orientation', 'RGB', {'exif': exif(99)}),
                             *((f'EXIF {o}', 'RGB', {'exif': exif(o)}) for o in range(1, 9))):
        content = encoded(smooth.convert(mode), 'JPEG', **more)
        add(f'jpeg {name}.jpg', content, upright(content, mode), (8, GREY if mode == 'L' else RGB))
    content = encoded(smooth.convert('CMYK'), 'JPEG')
    add('jpeg CMYK.jpeg', content, upright(content, 'RGB'), (8, RGB), says='CMYK colours are turned into RGB')
    content = encoded(smooth, 'JPEG') + b'more than a picture' * 9
    add('jpeg and more.JPG', content, upright(content, 'RGB'), (8, RGB))
    content = encoded(smooth, 'MPO', save_all=True, append_images=frames()[1:])
    add('jpeg MPO.jpg', content, upright(content, 'RGB'), (8, RGB))
    # WebP
    content = encoded(smooth, 'WEBP')
    add('webp.webp', content, upright(content, 'RGB'), (8, RGB))
    add('webp lossless.webp', encoded(picture, 'WEBP', lossless=True), rgb, (8, RGB))
    add('webp alpha.webp', encoded(Image.fromarray(rgba), 'WEBP', lossless=True, exact=True), rgba, (8, RGBA))
    add('webp EXIF 8.webp', encoded(picture, 'WEBP', lossless=True, exif=exif(8)), turned(rgb, 8), (8, RGB))
    add('webp animated.webp', encoded(frames()[0], 'WEBP', lossless=True, save_all=True, append_images=frames()[1:]),
        np.asarray(frames()[0]), (8, RGB), says='has 3 frames; the first is used')
    # BMP
    add('bmp 1.bmp', encoded(Image.fromarray(bits), 'BMP'), bits * np.uint8(255), (8, GREY))
    add('bmp L.bmp', encoded(Image.fromarray(grey), 'BMP'), grey, (8, GREY))
    add('bmp P.bmp', encoded(paletted, 'BMP'), looked_up, (8, RGB))
    add('bmp RGB.dib', encoded(picture, 'DIB'), rgb, (8, RGB))
    # TIFF
    add('tiff 1.tif', encoded(Image.fromarray(bits), 'TIFF'), bits * np.uint8(255), (8, GREY))
    add('tiff 1 fax.tif', encoded(Image.fromarray(bits), 'TIFF', compression='group4'), bits * np.uint8(255), (8, GREY))
    add('tiff L.tiff', encoded(Image.fromarray(grey), 'TIFF'), grey, (8, GREY))
    add('tiff 0 is white.tif', tiff(grey, photometric=0), 255 - grey, (8, GREY))
    add('tiff LA.tif', encoded(Image.fromarray(la), 'TIFF'), la, (8, GREY_ALPHA))
    add('tiff P.tif', encoded(paletted, 'TIFF'), looked_up, (8, RGB))
    add('tiff planes.tif', tiff(rgb, separate=True), rgb, (8, RGB))
    add('tiff RGBA lzw.tif', encoded(Image.fromarray(rgba), 'TIFF', compression='tiff_lzw'), rgba, (8, RGBA))
    add('tiff profile.tif', encoded(picture, 'TIFF', icc_profile=SRGB), rgb, (8, RGB))
    add('tiff pages.tif', encoded(frames()[0], 'TIFF', save_all=True, append_images=frames()[1:]),
        np.asarray(frames()[0]), (8, RGB), says='has 3 frames; the first is used')
    content = encoded(smooth.convert('CMYK'), 'TIFF')
    add('tiff CMYK.tif', content, upright(content, 'RGB'), (8, RGB), says='CMYK colours are turned into RGB')
    for o in range(2, 9):
        add(f'tiff RGB turned {o}.tif', tiff(rgb, orientation=o), turned(rgb, o), (8, RGB))
    add('tiff L turned 6.tif', tiff(grey, orientation=6), turned(grey, 6), (8, GREY))
    for order, said in (('<', 'little'), ('>', 'big')):
        for channels, colour in ((1, GREY), (3, RGB), (4, RGBA)):
            add(f'tiff 16 bit {said} {channels}.tif', tiff(deep[channels], order), deep[channels], (16, colour))
            add(f'tiff 16 bit {said} {channels} turned 5.tif', tiff(deep[channels], order, 5),
                turned(deep[channels], 5), (16, colour))
    add('tiff 16 bit 0 is white.tif', tiff(deep[1], photometric=0), 65535 - deep[1], (16, GREY))
    _, lzw = cv2.imencode('.tif', deep[3][..., ::-1])  # OpenCV compresses with LZW
    add('tiff 16 bit lzw.tif', lzw.tobytes(), deep[3], (16, RGB))
    # sizes
    for height, width in ((8, 8), (8, 200), (200, 8), (9, 17), (32, 32), (33, 31), (64, 257), (301, 100)):
        size = noise(height, height, width)
        add(f'size {height} x {width}.png', encoded(Image.fromarray(size), 'PNG'), size, (8, RGB))
    # masks
    plain = encoded(picture, 'PNG')

    def masked(name: str, content: bytes, hole: np.ndarray, file: str = '.png', **more: object) -> None:
        add(f'mask {name}.png', plain, rgb, (8, RGB), mask=(f'mask {name}{file}', content), hole=hole, **more)

    hole = usual_mask(h, w) > 127
    as_mask = Image.fromarray(hole * np.uint8(255))
    masked('nothing', encoded(Image.fromarray(np.zeros((h, w), np.uint8)), 'PNG'), np.zeros((h, w), bool),
           says='masks/mask nothing.png: no hole in the part of')
    masked('0 and 1', encoded(Image.fromarray(hole.astype(np.uint8)), 'PNG'), np.zeros((h, w), bool),
           says='masks/mask 0 and 1.png: no hole in the part of')
    masked('everything', encoded(Image.fromarray(np.full((h, w), 255, np.uint8)), 'PNG'), np.ones((h, w), bool))
    one = np.zeros((h, w), bool)
    one[h - 1, w - 1] = True
    masked('one pixel', encoded(Image.fromarray(one), 'PNG'), one)
    masked('1 bit', encoded(Image.fromarray(hole), 'PNG'), hole)
    masked('bmp', encoded(as_mask, 'BMP'), hole, '.bmp')
    masked('webp', encoded(as_mask.convert('RGB'), 'WEBP', lossless=True), hole, '.webp')
    masked('tiff', encoded(as_mask, 'TIFF'), hole, '.tif')
    masked('jpeg', encoded(as_mask, 'JPEG', quality=95), hole, '.jpg')
    masked('palette', encoded(as_mask.convert('RGB').quantize(2), 'PNG'), hole)
    masked('16 bit', png(hole * np.uint16(40000), 16, GREY), hole)
    masked('16 bit RGB', png(np.repeat(hole[..., None] * np.uint16(32768), 3, 2), 16, RGB), hole)
    masked('alpha', png(np.dstack([np.full((h, w), 255, np.uint8), hole * np.uint8(255)]), 8, GREY_ALPHA), hole)
    masked('levels', encoded(Image.fromarray(np.where(hole, np.uint8(128), np.uint8(127))), 'PNG'), hole)
    masked('turned', encoded(Image.fromarray(turned(hole * np.uint8(255), 8)), 'PNG', exif=exif(6)[6:]), hole)
    masked('animated', encoded(as_mask.convert('RGB'), 'PNG', save_all=True, append_images=frames()[1:]), hole,
           says='masks/mask animated.png: has 3 frames; the first is used')
    for height, width in ((2 * h, 2 * w), (8, 9), (100, 40), (31, 24)):
        other = usual_mask(height, width)
        masked(f'{height} x {width}', encoded(Image.fromarray(other), 'PNG'), grown(other > 127, h, w))
    return cases


CASES = table()


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


@pytest.fixture(scope='module')
def completed(tiny, tmp_path_factory) -> tuple[dict[str, Path], str]:
    """The whole table in one folder through both stages, and what was said."""
    place = places(tmp_path_factory.mktemp('table'))
    for name, case in CASES.items():
        (place['images'] / name).write_bytes(case.content)
        mask_name, mask = case.mask or (Path(name).stem + '.png', encoded(Image.fromarray(
            usual_mask(*case.native.shape[:2])), 'PNG'))
        (place['masks'] / mask_name).write_bytes(mask)
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('tqdm.tqdm.write', lambda line, file=None: said.append(line))
        assert complete(tiny, place) == (0, 0), said
    return place, '\n'.join(said)


@pytest.mark.parametrize('name', CASES)
def test_known_pixels_depth_and_channels_are_the_inputs(completed, name):
    case, (place, said) = CASES[name], completed
    path = place['save'] / f'{Path(name).stem}_0.png'
    result = pixels_of(path)
    hole = usual_mask(*case.native.shape[:2]) > 127 if case.hole is None else case.hole
    assert png_kind(path.read_bytes()) == case.png
    assert result.shape == case.native.shape and result.dtype == case.native.dtype
    np.testing.assert_array_equal(result[~hole], case.native[~hole])
    if hole.any():
        assert (result[hole] != case.native[hole]).any()
        if result.ndim == 3 and result.shape[2] in (2, 4):
            assert (result[hole][:, -1] == np.iinfo(result.dtype).max).all()  # what was painted is opaque
    about = [line for line in said.splitlines() if f'{name}: ' in line]
    assert len(about) == bool(case.says) and all(case.says in line for line in about)  # once, not by stage 2 again


def test_the_table_is_large_enough():
    assert len(CASES) >= 60


@pytest.mark.parametrize('name', ['png profile', 'png 16 bit profile', 'jpeg profile', 'tiff profile'])
def test_the_colour_profile_goes_with_the_pixels(completed, name):
    with Image.open(completed[0]['save'] / f'{name}_0.png') as result:
        assert result.info['icc_profile'] == SRGB


def test_figures_of_kept_16_bit_results_are_those_of_the_first_run(tiny, tmp_path):
    place = places(tmp_path)
    for channels in (1, 2, 3, 4):
        colour = {1: GREY, 2: GREY_ALPHA, 3: RGB, 4: RGBA}[channels]
        (place['images'] / f'{channels}.png').write_bytes(png(noise(0, 20, 20, channels, np.uint16), 16, colour))
    Image.fromarray(usual_mask(20, 20)).save(place['masks'] / 'm.png')
    assert complete(tiny, place) == (0, 0)
    first = files_of(place['save'])
    assert complete(tiny, place) == (0, 0)
    assert files_of(place['save']) == first


# ---------------------------------------------------------------- folders of pictures

ODD_NAMES = [
    b'with space.png', 'Übergröße 写真.png'.encode(), b'-dash.png', b'--overwrite.png', b'a.b.c.png', b'new\nline.png',
    b'\xff\xfe not utf-8.png', b'tab\t.png', b'colour \x1b[31m.png', b'quote\'".png', b'*?[x].png', b'%s{0}.png',
    b'semi;rm -rf $HOME.png', b'x' * 240 + b'.png', b'sub/deeper/a.png', b'sub/a.png', b'sub.png/inner.png',
    b'UPPER.PNG', b'trailing .png', b'a..png', b'\\back\\slash.png']


def test_odd_file_names_links_and_folders(tiny, tmp_path, capfd):
    place = places(tmp_path)
    picture = encoded(Image.fromarray(noise(0, 20, 24)), 'PNG')
    for name in ODD_NAMES:
        path = os.path.join(os.fsencode(place['images']), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_bytes(picture)
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere' / 'linked.png').write_bytes(picture)
    (place['images'] / 'link.png').symlink_to(tmp_path / 'elsewhere' / 'linked.png')
    (place['images'] / 'folder').symlink_to(tmp_path / 'elsewhere')
    (place['images'] / 'round').symlink_to(place['images'])
    (place['images'] / 'sub' / 'up').symlink_to('..')
    (place['images'] / 'nowhere.png').symlink_to('gone.png')
    (place['images'] / 'itself.png').symlink_to('itself.png')
    os.mkfifo(place['images'] / 'pipe.png')  # which would wait for ever
    (place['images'] / ('y' * 251 + '.png')).write_bytes(picture)  # its result's name would be too long
    (place['images'] / '.hidden.png').write_bytes(b'not looked at')
    (place['images'] / 'notes.txt').write_text('not looked at')
    Image.fromarray(usual_mask(20, 24)).save(place['masks'] / 'm.png')
    before = files_of(place['images'])
    assert complete(tiny, place) == (1, 1)
    said = capfd.readouterr().err
    results = {os.fsencode(p.relative_to(place['save'])) for p in place['save'].rglob('*_0.png')}
    good = [name[:-4] for name in [*ODD_NAMES, b'link.png', b'folder/linked.png']]
    assert results == {name + b'_0.png' for name in good}
    assert f'3 of {len(good) + 3} pictures failed' in said
    for name, why in (('nowhere', 'no such image'), ('itself', 'unreadable image'), ('y' * 251, 'cannot be written')):
        assert any(name in line and why in line for line in said.splitlines()), said
    assert '\x1b[31m' not in said
    assert files_of(place['images']) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ['elsewhere', 'images', 'masks', 'save']
    listed = tmp_path / 'list.txt'
    listed.write_bytes(b'\xef\xbb\xbf' + b'\r\n'.join(os.fsencode(place['images']) + b'/' + n for n in ODD_NAMES
                                                        if b'\n' not in n and n.strip() == n))
    assert len(pairs.listing(listed, '--i')) == len(ODD_NAMES) - 1


def test_messages_stay_on_one_line_whatever_a_file_is_called():
    assert one_line('a\nb\r\x1b[2J\u2028c') == 'a\\nb\\r\\x1b[2J\\u2028c'


def test_a_single_mask_for_a_folder_inverted_and_grown(tiny, tmp_path):
    place = places(tmp_path)
    sizes = {'a': (40, 40), 'b': (40, 60), 'c': (30, 20)}
    for name, size in sizes.items():
        Image.fromarray(noise(0, *size)).save(place['images'] / f'{name}.png')
    mask = np.full((40, 40), 255, np.uint8)
    mask[20, 20] = 0
    Image.fromarray(mask).save(place['masks'] / 'm.png')
    assert complete(tiny, {**place, 'masks': place['masks'] / 'm.png'},
                    common=('--invert_mask', '--dilate', 3)) == (0, 0)
    y, x = np.mgrid[0:40, 0:40] - 20
    disc = x ** 2 + y ** 2 <= 9
    for name, size in sizes.items():
        before, after = (np.asarray(Image.open(place[p] / f)) for p, f in (('images', f'{name}.png'),
                                                                        ('save', f'{name}_0.png')))
        hole = grown(disc, *size)
        np.testing.assert_array_equal(after[~hole], before[~hole])
        assert (after[hole] != before[hole]).any(-1).mean() > 0.9


def test_geometry_hole_works_on_a_square_around_the_hole(tiny, tmp_path):
    """The far part of the picture has no influence, so a small hole in a large picture is done in detail."""
    place = places(tmp_path)
    picture = noise(0, 400, 700)
    mask = np.zeros((400, 700), np.uint8)
    mask[380:395, 20:60] = 255
    other = picture.copy()
    other[:, 300:] = 7
    for name, pixels in (('a', picture), ('b', other)):
        Image.fromarray(pixels).save(place['images'] / f'{name}.png')
    Image.fromarray(mask).save(place['masks'] / 'm.png')
    assert complete(tiny, place, 'hole') == (0, 0)
    one, two = (np.asarray(Image.open(place['save'] / f'{name}_0.png')) for name in 'ab')
    hole = mask > 127
    np.testing.assert_array_equal(one[~hole], picture[~hole])
    assert (two[~hole] == other[~hole]).all() and (one[hole] != picture[hole]).any()
    # same seed, other name: the priors differ, so compare what the network sees instead
    seen = []
    for pixels in (picture, other):
        frame, inside = geometry.hole_in(mask, 400, 700, 'hole')
        assert frame.height == frame.width == 80
        seen.append(geometry.sealed(geometry.cut(pixels, frame), inside, 32, Image.BICUBIC)[0].tobytes())
    assert seen[0] == seen[1]


def test_crop_with_a_square_mask_and_keep_size_fills_the_middle(tiny, tmp_path):
    place = places(tmp_path)
    Image.fromarray(noise(0, 30, 50)).save(place['images'] / 'a.png')
    Image.fromarray(usual_mask(24, 24)).save(place['masks'] / 'a.png')
    assert complete(tiny, place, 'crop') == (0, 0)
    before, after = (np.asarray(Image.open(place[p] / f)) for p, f in (('images', 'a.png'), ('save', 'a_0.png')))
    hole = np.zeros((30, 50), bool)
    hole[:, 10:40] = grown(usual_mask(24, 24) > 127, 30, 30)
    np.testing.assert_array_equal(after[~hole], before[~hole])
    assert (after[hole] != before[hole]).any()


def test_one_bad_picture_of_each_kind_is_listed_and_the_others_are_done(tiny, tmp_path, capfd):
    place = places(tmp_path)
    good = encoded(Image.fromarray(photograph(0, 40, 50)), 'PNG')
    sound = {'png': good, **{kind: encoded(Image.fromarray(photograph(0, 40, 50)), name) for kind, name in (
        ('jpg', 'JPEG'), ('webp', 'WEBP'), ('bmp', 'BMP'), ('tif', 'TIFF'))}}
    bad = {f'cut {kind}.{kind}': content[:len(content) // 2] for kind, content in sound.items()}
    bad |= {f'start {kind}.{kind}': content[:6] for kind, content in sound.items()}
    bad |= {'empty.png': b'', 'text.jpg': b'hello', 'planes.tif': tiff(noise(0, 9, 9, 3, np.uint16), separate=True),
            'float.tif': encoded(Image.fromarray(np.ones((9, 9), np.float32)), 'TIFF'), 'small.png': encoded(
                Image.new('L', (7, 90)), 'PNG'), 'gif.png': encoded(Image.new('P', (9, 9)), 'GIF')}
    for name, content in (*bad.items(), ('fine.png', good), ('wrong ending.jpg', good)):
        (place['images'] / name).write_bytes(content)
    (place['images'] / 'no mask.png').write_bytes(good)
    for name in (*bad, 'fine.png', 'wrong ending.jpg'):
        Image.fromarray(usual_mask(40, 50)).save(place['masks'] / f'{Path(name).stem}.png')
    (place['masks'] / 'no mask.png').write_bytes(good[:90])
    assert complete(tiny, place) == (1, 1)
    said = capfd.readouterr().err
    assert f'{len(bad) + 1} of {len(bad) + 3} pictures failed' in said
    for name in (*bad, 'no mask.png'):
        assert f'{name}: ' in said, name
    assert 'save it with interleaved channels' in said and 'Traceback' not in said
    assert {p.name for p in place['save'].glob('*.png')} == {'fine_0.png', 'wrong ending_0.png'}


def test_a_result_never_replaces_an_input(tiny, tmp_path, monkeypatch):
    """A list with paths beside the save place could lead there."""
    monkeypatch.chdir(tmp_path)
    for name in ('a.png', 'a_0.png', 'm.png', 'condition_1/a.png'):
        Path(name).parent.mkdir(exist_ok=True)
        Image.fromarray(noise(0, 20, 20)).save(name)
    before = files_of(tmp_path)
    Path('list.txt').write_text('a.png\na_0.png\n')
    ckpt = {'1': str(tiny['transformer']), '2': str(tiny['generator'])}
    with pytest.raises(UserError, match=r'condition_1/a\.png would be written, and is an input'):
        stage_1.main(['--ckpt_path', ckpt['1'], '--image_url', 'condition_1', '--mask_url', 'm.png', '--overwrite'])
    with pytest.raises(UserError, match=r'a_0\.png would be written, and is an input'):
        stage_2.main(['--ckpt_path', ckpt['2'], '--input', 'list.txt', '--mask', 'm.png', '--prior', '.',
                      '--save_path', '.', '--overwrite'])
    with pytest.raises(UserError, match='is the save place, which is never searched'):
        stage_1.main(['--ckpt_path', ckpt['1'], '--image_url', '.', '--mask_url', 'm.png'])
    assert {k: v for k, v in files_of(tmp_path).items() if k != 'list.txt'} == before


def test_a_full_disk_ends_the_run_with_one_line_and_a_name_that_cannot_be_written_does_not(monkeypatch, capsys):
    import errno

    monkeypatch.setattr('sys.argv', ['x'])
    full = OSError(errno.ENOSPC, 'No space left on device')

    def main(_: list[str]) -> int:
        raise errors.not_written(Path('a.png'), full)
    assert run(main) == 2
    assert capsys.readouterr().err == ('error: nothing more can be written (No space left on device); finished files '
                                       'are whole, and the same command (a training: with --ckpt_path) '
                                       'continues once there is room\n')
    line = errors.not_written(Path('a.png'), OSError(errno.ENAMETOOLONG, 'File name too long'))
    assert isinstance(line, UserError) and str(line) == 'a.png: cannot be written (File name too long)'


# ---------------------------------------------------------------- properties

KINDS = st.sampled_from([(c, kind) for c in (1, 2, 3, 4) for kind in (np.uint8, np.uint16)])
SIDES = st.integers(8, 70)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, KINDS, st.sampled_from(['resize', 'hole', 'crop']),
       st.sampled_from([0.0, 0.01, 0.3, 1.0]), st.integers(0, 10 ** 6))
def test_at_its_own_size_only_the_hole_changes(height, width, mask_height, mask_width, kind, name, share, seed):
    rng = np.random.default_rng(seed)
    native, other = (noise(seed + i, height, width, *kind) for i in range(2))
    grey = np.where(rng.random((mask_height, mask_width)) < share, np.uint8(200), np.uint8(100))
    painted = rng.random((32, 32, 3), np.float32) * 1.2 - 0.1
    frame, hole = geometry.hole_in(grey, height, width, name)
    changes = np.zeros((height, width), bool)
    geometry.cut(changes, frame)[...] = hole
    assert not (geometry.reaches_out(grey, height, width, name) and name != 'crop')
    other = np.where(changes.reshape(changes.shape + (1,) * (native.ndim - 2)), other, native)
    results = [compositing.at_own_size(picture, frame, hole, painted) for picture in (native, other)]
    assert results[0].shape == native.shape and results[0].dtype == native.dtype
    np.testing.assert_array_equal(results[0][~changes], native[~changes])
    np.testing.assert_array_equal(*results)  # sealed: nothing that was under the mask is left


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, KINDS, st.booleans(), st.integers(0, 10 ** 6))
def test_a_written_png_holds_the_pixels_the_text_and_the_profile(tmp_path_factory, height, width, kind, profile, seed):
    path = tmp_path_factory.mktemp('png') / 'a.png'
    pixels = noise(seed, height, width, *kind)
    images.write_png(path, pixels, SRGB if profile else None, {'metrics': 'inf nan 0.5'})
    found = images.load(path)
    np.testing.assert_array_equal(found.native, pixels)
    assert found.native.dtype == pixels.dtype and found.icc_profile == (SRGB if profile else None)
    assert images.png_text(path) == {'metrics': 'inf nan 0.5'}
    np.testing.assert_array_equal(pixels_of(path), pixels)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 50), st.booleans(), st.integers(0, 10 ** 6))
def test_growing_a_mask_adds_what_is_near_it(height, width, dilate, invert, seed):
    grey = np.random.default_rng(seed).choice(np.array([0, 127, 128, 255], np.uint8), (height, width),
                                              p=[0.9, 0.05, 0.03, 0.02])
    grey = 255 - grey if invert else grey
    hole = (255 - grey if invert else grey) > 127
    y, x = np.nonzero(hole)
    rows, columns = np.mgrid[0:height, 0:width]
    squared = ((rows[..., None] - y) ** 2 + (columns[..., None] - x) ** 2).min(-1, initial=10 ** 9)
    np.testing.assert_array_equal(masks.adjusted(grey, invert, dilate) > 127, squared <= dilate ** 2)


@settings(max_examples=80, deadline=None)
@given(st.integers(8, 200), st.integers(8, 200), st.integers(0, 10 ** 6))
def test_the_frame_around_a_hole_holds_all_of_it_and_is_square_where_it_can_be(height, width, seed):
    rng = np.random.default_rng(seed)
    top, left = rng.integers(height), rng.integers(width)
    hole = np.zeros((height, width), bool)
    hole[top:rng.integers(top, height) + 1, left:rng.integers(left, width) + 1] = True
    box = geometry.around(hole)
    assert geometry.cut(hole, box).sum() == hole.sum() and geometry.cut(hole, box).shape == (box.height, box.width)
    extent = max(np.ptp(np.flatnonzero(hole.any(1))), np.ptp(np.flatnonzero(hole.any(0)))) + 1
    assert box.height == box.width or extent > min(height, width)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10 ** 6), st.sampled_from([0.0, 0.1, 0.5, 0.99, 1.0]), st.sampled_from([32, 33, 64]))
def test_blending_keeps_known_pixels_and_stays_in_range(seed, share, size):
    rng = np.random.default_rng(seed)
    image, painted = rng.random((2, size, size, 3), np.float32)
    hole = rng.random((size, size)) < share
    result = compositing.blended(painted, image, hole)
    assert result.shape == image.shape and result.min() >= 0 and result.max() <= 1
    np.testing.assert_array_equal(result[~hole], image[~hole])


@pytest.mark.parametrize('offset', [-0.15, 0.08, 0.15])
@pytest.mark.parametrize('shape', ['block', 'disc', 'line', 'thin line', 'side'])
@pytest.mark.parametrize('everywhere', [True, False])
def test_there_is_no_seam_where_the_hole_begins(offset, shape, everywhere):
    """A smooth picture painted right but for a constant, on known pixels too or in the hole alone: the border is no
    step, and nor is anything inside."""
    side, size = 1024, 256
    y, x = np.mgrid[0:side, 0:side] / side
    native = np.rint(255 * np.stack([0.2 + 0.5 * x, 0.3 + 0.4 * y, 0.5 + 0.2 * x * y], -1)).astype(np.uint8)
    hole = {'block': (abs(x - 0.5) < 0.2) & (abs(y - 0.4) < 0.15), 'disc': (x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.07,
            'line': abs(x - y) < 0.01, 'thin line': abs(x - y) < 0.0008, 'side': x < 0.3}[shape]
    frame, full = geometry.hole_in(hole * np.uint8(255), side, side, 'resize')
    image, small = geometry.sealed(native, full, size, Image.BICUBIC)
    image = image / np.float32(255)
    true = images.bicubic(native, size, size) / np.float32(255)
    painted = np.clip(true + np.float32(offset) * (everywhere | small)[..., None], 0, 1)
    result = compositing.at_own_size(native, frame, full, compositing.blended(painted, image, small)).astype(int)
    assert max(np.abs(np.diff(result, axis=axis)).max() for axis in (0, 1)) <= 2  # levels; the picture's own are 1
    plain = compositing.at_own_size(native, frame, full, np.where(small[..., None], painted, image)).astype(int)
    assert np.abs(np.diff(plain, axis=1)).max() > 60 * abs(offset)


def test_a_large_picture_is_read_and_blended():
    """Six megapixels here; the functions work in strips, so fifty take eight times as long."""
    native = noise(0, 2000, 3000)
    hole = np.zeros((2000, 3000), bool)
    hole[300:1500, 1000:2500] = True
    result = compositing.at_own_size(native, geometry.whole(2000, 3000), hole, np.full((256, 256, 3), 0.5, np.float32))
    assert (result[hole] == 127).all()
    np.testing.assert_array_equal(result[~hole], native[~hole])


def test_unfinished_files_are_swept_and_others_left(tmp_path):
    for name in ('.part-x.png', 'sub/.part-y.png', 'a.png', '.other'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b'')
    files.sweep(tmp_path, below=False)
    assert set(files_of(tmp_path)) == {'sub/.part-y.png', 'a.png', '.other'}
    files.sweep(tmp_path)
    assert set(files_of(tmp_path)) == {'a.png', '.other'}
    files.sweep(tmp_path / 'missing')
