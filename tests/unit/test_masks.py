"""What a picture means as a mask: the hole that the person who made it had in mind, or an error."""
from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ict.data import images, mask_levels, masks
from ict.errors import UserError
from tests.conftest import photograph
from tests.pictures import GREY, GREY_ALPHA, RGB, encoded, png

LIMIT = images.MAX_PIXELS
HOLE = np.zeros((60, 80), bool)
HOLE[20:40, 30:55] = True
HOLE[::7, 70] = True


def two(dark: object, bright: object, kind: type = np.uint8) -> np.ndarray:
    """The hole in one colour, the rest in another: (60, 80) or (60, 80, C)."""
    hole = HOLE if np.ndim(dark) == 0 else HOLE[..., None]
    return np.where(hole, np.array(bright, kind), np.array(dark, kind))


def soft(dark: tuple[int, ...], bright: tuple[int, ...], blur: float = 1.0) -> np.ndarray:
    """Two colours with a soft border, on a large canvas."""
    share = cv2.GaussianBlur(np.kron(HOLE[:, :60], np.ones((4, 4))).astype(np.float32), (0, 0), blur)[..., None]
    return np.rint(np.array(dark) * (1 - share) + np.array(bright) * share).astype(np.uint8)


def in_palette(colour: tuple[int, int, int]) -> bytes:
    return png(HOLE.astype(np.uint8), 1, 3, ((b'PLTE', bytes((0, 0, 0, *colour))),))


def saved(pixels: np.ndarray, kind: str = 'PNG', **more: object) -> bytes:
    return encoded(Image.fromarray(pixels), kind, **more)


def read(folder: Path, content: bytes, **more: object) -> tuple[np.ndarray, list[str]]:
    (folder / 'm.png').write_bytes(content)
    levels, notes = masks.read(folder / 'm.png', **{'invert': False, 'dilate': 0, 'max_pixels': LIMIT, **more})
    return levels > 127, notes


CLEAR = HOLE * np.uint8(255)
TWO_VALUES = {
    '0 and 255': saved(two(0, 255)),
    '0 and 1': saved(two(0, 1)),
    '0 and 127': saved(two(0, 127)),
    '200 and 255': saved(two(200, 255)),
    '3 and 4 in 16 bits': png(two(3, 4, np.uint16), 16, GREY),
    '0 and 1 in 16-bit colour': png(two((0, 0, 0), (1, 1, 1), np.uint16), 16, RGB),
    '1 bit': saved(HOLE),
    '2 bits': png(two(0, 1), 2, GREY),
    'black and red': saved(two((0, 0, 0), (255, 0, 0))),
    'black and dark blue': saved(two((0, 0, 0), (0, 0, 128))),
    'purple and yellow': saved(two((68, 1, 84), (253, 231, 37))),
    'black and red in a palette': in_palette((128, 0, 0)),
    'red and white with an opaque alpha channel': saved(np.dstack([two((255, 0, 0), (255, 255, 255)),
                                                                   np.full(HOLE.shape, 255, np.uint8)])),
    '32 bits': encoded(Image.fromarray(two(0, 1, np.int32)), 'TIFF'),
}
DRAWN = {  # on transparent ground
    'black': saved(np.dstack([np.zeros_like(CLEAR), CLEAR])),
    'white': saved(np.dstack([np.full_like(CLEAR, 255), CLEAR])),
    'grey, 16 bits': png(np.dstack([two(777, 777, np.uint16), CLEAR.astype(np.uint16) * 257]), 16, GREY_ALPHA),
    'red': saved(np.dstack([two((0, 0, 0), (200, 0, 0)), CLEAR])),
    'a colour in a palette': encoded(Image.fromarray(two((9, 9, 9), (0, 0, 0))).quantize(2), 'PNG', transparency=0),
}


@pytest.mark.parametrize('case', TWO_VALUES)
def test_of_two_values_the_brighter_is_the_hole_and_inverted_the_darker(tmp_path, case):
    np.testing.assert_array_equal(read(tmp_path, TWO_VALUES[case])[0], HOLE)
    np.testing.assert_array_equal(read(tmp_path, TWO_VALUES[case], invert=True)[0], ~HOLE)


@pytest.mark.parametrize('case', DRAWN)
def test_of_one_colour_on_transparent_ground_what_is_drawn_is_the_hole(tmp_path, case):
    np.testing.assert_array_equal(read(tmp_path, DRAWN[case])[0], HOLE)


def test_what_is_drawn_in_black_stays_the_hole_when_black_is_the_hole(tmp_path):
    np.testing.assert_array_equal(read(tmp_path, DRAWN['black'], invert=True)[0], HOLE)
    np.testing.assert_array_equal(read(tmp_path, DRAWN['white'], invert=True)[0], ~HOLE)


def test_many_grey_levels_are_hole_above_the_middle(tmp_path):
    levels = np.random.default_rng(0).choice(np.array([0, 60, 127, 128, 200, 255], np.uint8), (60, 80),
                                             p=[0.6, 0.05, 0.05, 0.05, 0.05, 0.2])
    np.testing.assert_array_equal(read(tmp_path, saved(levels))[0], levels > 127)
    np.testing.assert_array_equal(read(tmp_path, saved(255 - levels), invert=True)[0], levels > 127)


@pytest.mark.parametrize(('dark', 'bright'), [
    ((0, 0, 0), (255, 0, 0)), ((0, 0, 0), (0, 0, 255)), ((0, 0, 0), (128, 0, 0)), ((255, 0, 0), (255, 255, 255)),
    ((0, 0, 0), (255, 255, 255)), ((0, 0, 0), (128, 128, 128)), ((60, 60, 60), (120, 120, 120))])
@pytest.mark.parametrize('how', ['soft', 'JPEG', 'WebP'])
def test_two_colours_stay_two_with_soft_borders_and_after_lossy_compression(tmp_path, dark, bright, how):
    pixels = soft(dark, bright, 1.5 if how == 'soft' else 0.4)
    content = {'soft': saved(pixels), 'JPEG': saved(pixels, 'JPEG', quality=75),
               'WebP': saved(pixels, 'WEBP', quality=80)}[how]
    wanted = np.kron(HOLE[:, :60], np.ones((4, 4))) > 0
    hole = read(tmp_path, content)[0]
    assert (hole & wanted).sum() > 0.9 * (hole | wanted).sum()


def marked(photo: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return cv2.line(photo.copy(), (30, 40), (200, 150), colour, 14)


@pytest.mark.parametrize('name', ['photograph', 'marked in red', 'marked in white', 'grey photograph', 'three classes',
                                  'cut-out photograph'])
def test_a_picture_that_is_no_mask_is_an_error_that_says_what_one_is(tmp_path, name):
    photo = photograph(3, 200, 240)
    classes = np.zeros_like(photo)
    classes[20:80, 20:80], classes[100:160, 100:180] = (128, 0, 0), (0, 128, 0)
    alpha = np.where(np.indices((200, 240))[0] < 60, np.uint8(0), np.uint8(255))
    content = {'photograph': saved(photo), 'marked in red': saved(marked(photo, (255, 0, 0)), 'JPEG'),
               'marked in white': saved(marked(photo, (255, 255, 255))), 'three classes': saved(classes),
               'grey photograph': saved(np.ascontiguousarray(photo[..., 1])),
               'cut-out photograph': saved(np.dstack([photo, alpha]))}[name]
    with pytest.raises(UserError, match=r'm\.png: has many colours or shades, so it is no mask; .*white') as found:
        read(tmp_path, content)
    assert ('say alpha instead' in str(found.value)) == (name == 'cut-out photograph')


def test_published_levels_are_those_of_the_file(tmp_path):
    for pixels in (photograph(3, 60, 80), two(0, 1), two((0, 0, 0), (255, 0, 0))):
        Image.fromarray(pixels).save(tmp_path / 'p.png')
        wanted = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        for invert in (False, True):
            levels, _ = masks.read(tmp_path / 'p.png', invert, 0, LIMIT, published=True)
            np.testing.assert_array_equal(levels, 255 - wanted if invert else wanted)


def test_a_hole_of_most_of_the_mask_and_a_soft_border_are_said(tmp_path):
    large = np.where(np.indices((60, 80))[1] < 64, np.uint8(255), np.uint8(0))
    assert read(tmp_path, saved(large))[1] == [
        f'{tmp_path}/m.png: 80% of it is hole; if black is the hole, add --invert_mask']
    assert read(tmp_path, saved(255 - large), invert=True)[1] == [
        f'{tmp_path}/m.png: 80% of it is hole; if white is the hole, leave --invert_mask out']
    assert read(tmp_path, saved(large), invert=True)[1] == read(tmp_path, saved(two(0, 255)))[1] == []
    brushed = soft((0, 0, 0), (255, 255, 255), 9)
    _, said = read(tmp_path, saved(brushed))
    assert len(said) == 1 and 'of the pixels that it touches are between black and white; where a rim' in said[0]
    assert read(tmp_path, saved(brushed), dilate=3)[1] == []
    assert read(tmp_path, saved(soft((0, 0, 0), (255, 255, 255), 1), 'JPEG'))[1] == []


def test_the_transparent_part_of_a_picture_as_its_mask():
    alpha = np.full((60, 80), 255, np.uint8)
    alpha[HOLE] = 0
    alpha[0, :3] = 0, 127, 128
    picture = images.Picture(np.dstack([photograph(0, 60, 80), alpha]), photograph(0, 60, 80))
    np.testing.assert_array_equal(masks.of_alpha('a.png', picture, False, 0) > 127, alpha < 128)
    np.testing.assert_array_equal(masks.of_alpha('a.png', picture, True, 0) > 127, alpha > 127)
    deep = images.Picture(picture.native.astype(np.uint16) * 257, picture.rgb)
    np.testing.assert_array_equal(masks.of_alpha('a.png', deep, False, 0), 255 - alpha)
    for native in (picture.rgb, np.dstack([picture.rgb, alpha | 128])):
        with pytest.raises(UserError, match=r'a\.png: has no transparent part'):
            masks.of_alpha('a.png', images.Picture(native, picture.rgb), False, 0)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_a_mask_made_for_the_stored_pixels_is_turned_with_its_picture(orientation):
    stored = np.arange(60 * 80, dtype=np.uint16).reshape(60, 80)
    upright = images.upright(stored, orientation)
    for mask in (upright, stored, stored[::2, ::2]):
        wanted = images.upright(mask, orientation) if orientation >= 5 and mask is not upright else mask
        np.testing.assert_array_equal(masks.fitted(mask, *upright.shape, orientation), wanted)
    square = np.zeros((50, 50), np.uint8)
    assert masks.fitted(square, *upright.shape, orientation) is square


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 50), st.integers(0, 10 ** 6))
def test_growing_a_mask_adds_what_is_near_it(height, width, dilate, seed):
    grey = np.random.default_rng(seed).choice(np.array([0, 127, 128, 255], np.uint8), (height, width),
                                              p=[0.9, 0.05, 0.03, 0.02])
    y, x = np.nonzero(grey > 127)
    rows, columns = np.mgrid[0:height, 0:width]
    squared = ((rows[..., None] - y) ** 2 + (columns[..., None] - x) ** 2).min(-1, initial=10 ** 9)
    np.testing.assert_array_equal(masks.grown(grey, dilate) > 127, squared <= dilate ** 2)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 255), st.integers(0, 255), st.floats(0.02, 0.98), st.integers(0, 10 ** 6))
def test_of_any_two_grey_values_the_brighter_is_the_hole(one, other, share, seed):
    hole = np.random.default_rng(seed).random((20, 30)) < share
    pixels = np.where(hole, np.uint8(max(one, other)), np.uint8(min(one, other)))
    levels = mask_levels.levels_of(images.Picture(pixels, np.repeat(pixels[..., None], 3, -1)), False)
    wanted = hole if one != other and 0 < hole.sum() < hole.size else pixels > 127
    np.testing.assert_array_equal(levels > 127, wanted)
