"""Any picture in, the same picture with its hole filled out: file types, depths, rotations, sizes and masks."""
from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.conftest import files_of, photograph
from tests.pictures import (
    GREY,
    GREY_ALPHA,
    RGB,
    RGBA,
    SRGB,
    complete,
    encoded,
    exif,
    grown,
    noise,
    pixels_of,
    places,
    png,
    png_kind,
    tiff,
    turned,
    upright,
    usual_mask,
)


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
    masked('everything', encoded(Image.fromarray(np.full((h, w), 255, np.uint8)), 'PNG'), np.ones((h, w), bool),
           says='100% of it is hole; if black is the hole, add --invert_mask')
    masked('0 and 1', encoded(Image.fromarray(hole.astype(np.uint8)), 'PNG'), hole)
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
        says = '' if abs(width * h / (height * w) - 1) < 0.02 else f'{width} x {height} on a picture of {w} x {h}'
        masked(f'{height} x {width}', encoded(Image.fromarray(other), 'PNG'), grown(other > 127, h, w), says=says)
    return cases


CASES = table()


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
