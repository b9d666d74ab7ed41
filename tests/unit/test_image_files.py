"""Files with less or more than pixels in them, and results in other formats: nothing is lost or guessed in silence."""
from __future__ import annotations

import errno
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin

from ict import files
from ict.data import encode, images, jpeg
from ict.errors import UserError
from tests.conftest import photograph
from tests.pictures import GREY, GREY_ALPHA, RGB, SRGB, encoded, noise, png, tiff

PHOTO = Image.fromarray(photograph(5, 70, 90))
LARGE = Image.fromarray(photograph(5, 200, 240))
GREY_PROFILE = b'\0' * 16 + b'GRAY' + bytes(108)
JPEGS = {'baseline': {}, 'progressive': {'progressive': True}, 'restarts': {'restart_marker_rows': 1},
         'without subsampling': {'subsampling': 0}}


def load(folder: Path, content: bytes, **more: object) -> images.Picture:
    (folder / 'a.png').write_bytes(content)
    return images.load(folder / 'a.png', **more)


# ---------------------------------------------------------------- incomplete files

@pytest.mark.parametrize('kind', JPEGS)
@pytest.mark.parametrize('cut', [1, 2])
def test_a_jpeg_without_its_end_has_all_its_rows_and_that_is_said(tmp_path, kind, cut):
    content = encoded(PHOTO, 'JPEG', **JPEGS[kind])
    whole = load(tmp_path, content)
    found = load(tmp_path, content[:-cut])
    np.testing.assert_array_equal(found.native, whole.native)
    assert whole.notes == [] and found.notes == [f'{tmp_path}/a.png: lacks its end, but no row of its pixels']


@pytest.mark.parametrize('kind', JPEGS)
@pytest.mark.parametrize('share', [0.5, 0.8, 0.95])
def test_a_jpeg_with_missing_rows_is_refused_or_read_as_far_as_it_goes(tmp_path, kind, share):
    content = encoded(LARGE, 'JPEG', **JPEGS[kind])
    whole, cut = load(tmp_path, content), content[:int(len(content) * share)]
    with pytest.raises(UserError, match=r'a\.png: incomplete, .* missing; get the file anew$'):
        load(tmp_path, cut)
    with pytest.raises(UserError, match=r'get the file anew, or add --allow_truncated$'):
        load(tmp_path, cut, allow_truncated=False)
    found = load(tmp_path, cut, allow_truncated=True)
    assert len(found.notes) == 1 and 'filled as the decoder leaves them' in found.notes[0]
    _, row = jpeg.with_end(cut)
    assert found.native.shape == whole.native.shape and row is not None
    np.testing.assert_array_equal(found.native[:max(0, row - 16)], whole.native[:max(0, row - 16)])
    assert kind == 'progressive' or (0 < row < 200 and abs(row - 200 * share) < 30)


def test_whatever_is_cut_off_a_jpeg_no_row_is_taken_for_there_that_is_not(tmp_path):
    for options in ({}, {'progressive': True, 'quality': 95}):
        content = encoded(PHOTO.resize((40, 30)), 'JPEG', **options)
        whole = load(tmp_path, content).native
        for cut in range(1, 200):
            finished, row = jpeg.with_end(content[:-cut])
            if row is None:
                np.testing.assert_array_equal(load(tmp_path, finished).native, whole)
            assert (row is None) <= (cut <= 4)


def test_room_that_a_broken_download_left_empty_is_missing(tmp_path):
    content = encoded(LARGE, 'JPEG')
    with pytest.raises(UserError, match=r'rows from .* on are missing'):
        load(tmp_path, content[:len(content) // 2] + bytes(len(content) // 2))


def test_other_incomplete_files_are_read_as_far_as_they_go_when_that_is_asked_for(tmp_path):
    pixels = noise(0, 70, 90)
    for content in (encoded(Image.fromarray(pixels), 'PNG'), encoded(Image.fromarray(pixels), 'BMP')):
        cut = content[:len(content) * 2 // 3]
        with pytest.raises(UserError, match=r'incomplete, a part of its pixels is missing; get the file anew'):
            load(tmp_path, cut)
        found = load(tmp_path, cut, allow_truncated=True)
        assert (found.native == pixels).all((1, 2)).mean() > 0.5 and 'incomplete' in found.notes[0]
        with pytest.raises(UserError):  # the next one is refused again
            load(tmp_path, cut)


# ---------------------------------------------------------------- more than pixels

def test_a_profile_and_text_of_more_than_a_megabyte_are_read_and_a_bomb_is_not(tmp_path):
    profile = SRGB + np.random.default_rng(0).bytes(3 << 20)
    info = PngImagePlugin.PngInfo()
    for key in ('prompt', 'XML:com.adobe.xmp'):
        info.add_itxt(key, 'a' * (5 << 20), zip=True)
    found = load(tmp_path, encoded(PHOTO, 'PNG', icc_profile=profile, pnginfo=info))
    np.testing.assert_array_equal(found.native, np.asarray(PHOTO))
    assert found.icc_profile == profile
    encode.write(tmp_path / 'b.png', found.native, icc_profile=profile)
    assert images.load(tmp_path / 'b.png').icc_profile == profile
    bomb = PngImagePlugin.PngInfo()
    bomb.add_itxt('bomb', 'a' * (65 << 20), zip=True)
    with pytest.raises(UserError, match=r'a\.png: unreadable image'):
        load(tmp_path, encoded(PHOTO, 'PNG', pnginfo=bomb))


@pytest.mark.parametrize('bits', [8, 10, 12])
def test_values_of_fewer_bits_are_scaled_to_all_sixteen_and_that_is_said(tmp_path, bits):
    top = (1 << bits) - 1
    values = np.random.default_rng(bits).integers(0, top, (20, 30, 3), np.uint16, endpoint=True)
    values[0, 0] = 0, top, top // 2
    wanted = np.rint(values * (65535 / top))
    for content in (png(values, 16, RGB), tiff(values)):
        found = load(tmp_path, content)
        assert np.abs(found.native - wanted).max() <= 16  # exact at both ends, and in between to less than a level of 8
        assert found.native[0, 0, 0] == 0 and found.native[0, 0, 1] == 65535
        assert found.notes == [f'{tmp_path}/a.png: its values use {bits} of 16 bits, and are scaled to all of them']
    grey = load(tmp_path, png(np.dstack([values[..., 0], np.full((20, 30), 65535, np.uint16)]), 16, GREY_ALPHA))
    np.testing.assert_array_equal(grey.native[..., 0], found.native[..., 0])
    assert (grey.native[..., 1] == 65535).all()


def test_values_of_all_sixteen_bits_and_two_values_are_left_alone(tmp_path):
    for values in (noise(0, 20, 30, 1, np.uint16) >> 2, (noise(0, 20, 30, 1) > 99) * np.uint16(999)):
        found = load(tmp_path, png(values, 16, GREY))
        np.testing.assert_array_equal(found.native, values)
        assert found.notes == []


@pytest.mark.parametrize(('start', 'says'), [(b'\0\0\0\x18ftypheic', 'HEIC cannot be read here; convert it'),
                                             (b'\0\0\0\x1cftypmif1', 'HEIC cannot be read here; convert it'),
                                             (b'GIF89a', 'not a PNG, JPEG, WebP, BMP or TIFF')])
def test_what_only_calls_itself_a_png_is_named(tmp_path, start, says):
    with pytest.raises(UserError, match=says):
        load(tmp_path, start + bytes(99))


def camera_exif(orientation: int) -> bytes:
    """EXIF as cameras write it: description, exposure, place, and a thumbnail in a second directory."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0112], exif[0x0132] = 'Maker', orientation, '2024:05:06 07:08:09'
    exif.get_ifd(ExifTags.IFD.Exif)[0x829A] = TiffImagePlugin.IFDRational(1, 200)
    exif.get_ifd(ExifTags.IFD.GPSInfo)[1] = 'N'
    content = bytearray(exif.tobytes())
    at = 6 + struct.unpack_from('>I', content, 10)[0]
    at += 2 + 12 * struct.unpack_from('>H', content, at)[0]
    thumbnail = encoded(PHOTO.resize((16, 12)), 'JPEG')
    struct.pack_into('>I', content, at, len(content) - 6)
    there = len(content) - 6 + 2 + 2 * 12 + 4
    content += struct.pack('>HHHIIHHIII', 2, 0x0201, 4, 1, there, 0x0202, 4, 1, len(thumbnail), 0) + thumbnail
    return bytes(content)


def facts(path: Path) -> tuple[dict, dict, dict, dict]:
    with Image.open(path) as opened:
        exif = opened.getexif()
        return (dict(exif), exif.get_ifd(ExifTags.IFD.Exif), exif.get_ifd(ExifTags.IFD.GPSInfo),
                exif.get_ifd(ExifTags.IFD.IFD1))


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('save_format', encode.FORMAT_ENDINGS)
def test_profile_and_exif_go_into_results_without_orientation_and_thumbnail(tmp_path, kind, save_format):
    source = tmp_path / f'source.{kind.lower()}'
    PHOTO.save(source, kind, exif=camera_exif(6), icc_profile=SRGB)
    found = images.load(source)
    if kind == 'JPEG':
        assert facts(source)[3]  # there is a thumbnail to lose
    for pixels in (found.native, found.native[..., 0], np.dstack([found.native, found.native[..., :1]]),
                   found.native.astype(np.uint16) * 257):
        path = tmp_path / f'result{encode.FORMAT_ENDINGS[save_format]}'
        encode.write(path, pixels, save_format, found.icc_profile, found.exif)
        first, exposure, place, thumbnail = facts(path)
        assert first[0x010F] == 'Maker' and first[0x0132] == '2024:05:06 07:08:09'
        assert exposure[0x829A] == pytest.approx(1 / 200) and place[1] == 'N'
        assert not thumbnail and not {0x0112, 0x0100, 0x0103, 0x0111} & set(first)
        again = images.load(path)
        assert again.icc_profile == SRGB and again.orientation == 1 and again.native.shape[:2] == (90, 70)


def test_a_grey_profile_does_not_go_into_a_result_in_colour(tmp_path):
    for pixels, wanted in ((noise(0, 20, 30, 1), GREY_PROFILE), (noise(0, 20, 30), None)):
        encode.write(tmp_path / 'a.png', pixels, icc_profile=GREY_PROFILE)
        with Image.open(tmp_path / 'a.png') as opened:
            assert opened.info.get('icc_profile') == wanted


# ---------------------------------------------------------------- other formats

@pytest.mark.parametrize('channels', [1, 2, 3, 4])
@pytest.mark.parametrize('kind', [np.uint8, np.uint16])
@pytest.mark.parametrize('save_format', ['jpeg', 'webp'])
def test_jpeg_and_webp_are_close_to_the_pixels_and_what_they_lose_is_said(tmp_path, channels, kind, save_format):
    smooth = np.dstack([photograph(1, 64, 80), photograph(2, 64, 80)[..., :1]])
    pixels = {1: smooth[..., 0], 2: smooth[..., [0, 3]], 3: smooth[..., :3], 4: smooth}[channels].astype(kind)
    pixels = pixels * 257 if kind is np.uint16 else pixels
    encode.write(tmp_path / 'a', pixels, save_format)
    found = images.load(tmp_path / 'a')
    (tmp_path / 'b').write_bytes(encode.encode(pixels))
    wanted = images.load(tmp_path / 'b').rgb
    assert np.abs(found.rgb.astype(int) - wanted).mean() < 4
    lost = ['16 bits become 8'] * (kind is np.uint16)
    lost += ['transparent pixels are laid on white'] * (save_format == 'jpeg' and channels in (2, 4))
    assert encode.losses(pixels, save_format) == lost and encode.losses(pixels, 'png') == []
    with Image.open(tmp_path / 'a') as opened:
        assert opened.format == save_format.upper()


def test_a_profile_that_a_result_cannot_carry_is_said():
    grey_profile, said = bytes(16) + b'GRAY' + bytes(108), ['its colour profile is not one for these pixels']
    grey, colour = noise(0, 20, 30)[..., 0], noise(0, 20, 30)
    assert [encode.losses(grey, kind, grey_profile) for kind in ('png', 'jpeg', 'webp')] == [[], [], said]
    assert encode.losses(colour, 'png', grey_profile) == said and encode.losses(colour, 'webp', SRGB) == []


@pytest.mark.parametrize(('name', 'width'), [('a.bmp', 720), ('a.bmp', 540), ('a.tif', 50)])
def test_eight_bits_are_not_taken_for_sixteen(tmp_path, name, width):
    pixels = noise(0, 20, width)
    if name == 'a.bmp':  # rows of 2160 and 1620 bytes
        Image.fromarray(pixels).save(tmp_path / name)
    else:  # of separate planes, whose directory begins at byte 16000
        planes = [zlib.compress(pixels[..., k].tobytes()) for k in range(3)]
        tags = [(256, 3, [width]), (257, 3, [20]), (258, 3, [8, 8, 8]), (259, 3, [8]), (262, 3, [2]),
                (273, 4, [8, 5000, 10000]), (277, 3, [3]), (278, 3, [20]), (279, 4, list(map(len, planes))),
                (284, 3, [2])]
        content = bytearray(17000)
        content[:8] = struct.pack('<2sHI', b'II', 42, 16000)
        for start, plane in zip((8, 5000, 10000), planes, strict=True):
            content[start:start + len(plane)] = plane
        directory, further = struct.pack('<H', len(tags)), 16500
        for tag, kind, values in tags:
            packed = struct.pack(f'<{len(values)}{"H" if kind == 3 else "I"}', *values)
            if len(packed) > 4:
                content[further:further + len(packed)] = packed
                packed, further = struct.pack('<I', further), further + len(packed)
            directory += struct.pack('<HHI', tag, kind, len(values)) + packed.ljust(4, b'\0')
        content[16000:16000 + len(directory) + 4] = directory + bytes(4)
        (tmp_path / name).write_bytes(content)
    found = images.load(tmp_path / name)
    assert found.notes == [] and np.array_equal(found.native, pixels)


def test_a_turned_tiff_says_so_as_a_jpeg_does(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ('a.tif', 'a.png'):
        Image.fromarray(noise(0, 20, 30)).save(tmp_path / name, exif=exif)
    tiff, png = (images.load(tmp_path / name) for name in ('a.tif', 'a.png'))
    assert tiff.orientation == png.orientation == 6 and np.array_equal(tiff.native, png.native)


def test_more_pixels_or_exif_than_a_format_allows(tmp_path):
    with pytest.raises(UserError, match=r'--save_format webp: 16384 x 8 pixels are more than 16383 on a side; use png'):
        encode.write(tmp_path / 'a.webp', np.zeros((8, 16384, 3), np.uint8), 'webp')
    exif = Image.Exif()
    exif[0x010E] = 'x' * 70000
    encode.write(tmp_path / 'a.jpg', noise(0, 20, 30), 'jpeg', exif=exif.tobytes())
    assert encode.losses(noise(0, 20, 30), 'jpeg', None, exif.tobytes()) == ['its EXIF data is too long']
    encode.write(tmp_path / 'a.png', noise(0, 20, 30), 'png', exif=exif.tobytes())
    assert facts(tmp_path / 'a.png')[0][0x010E] == 'x' * 70000


# ---------------------------------------------------------------- the file system

def test_files_are_written_where_permissions_cannot_be_set_and_nothing_is_forced_to_the_disk(tmp_path, monkeypatch):
    def refused(number: int):
        def call(*_):
            raise OSError(number, os.strerror(number))
        return call
    monkeypatch.setattr(files.os, 'chmod', refused(errno.EPERM))
    monkeypatch.setattr(files.os, 'fsync', refused(errno.EINVAL))
    encode.write(tmp_path / 'sub' / 'a.png', noise(0, 20, 30))
    np.testing.assert_array_equal(images.load(tmp_path / 'sub' / 'a.png').native, noise(0, 20, 30))
    monkeypatch.setattr(files.os, 'fsync', refused(errno.EIO))
    with pytest.raises(OSError, match='Input/output error'):
        encode.write(tmp_path / 'sub' / 'b.png', noise(0, 20, 30))
    assert [path.name for path in (tmp_path / 'sub').iterdir()] == ['a.png']
