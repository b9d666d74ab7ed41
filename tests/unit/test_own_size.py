"""Completions at the picture's own size: known pixels stay, what is painted joins them without a seam."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from Guided_Upsample.datasets import compositing
from ict.data import encode, geometry, images
from tests.pictures import SRGB, noise, pixels_of

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
    frames = geometry.frames_in(grey, height, width, name)
    changes = np.zeros((height, width), bool)
    for frame, hole in frames:
        geometry.cut(changes, frame)[...] = hole
    assert not (geometry.reaches_out(grey, height, width, name) and name != 'crop')
    other = np.where(changes.reshape(changes.shape + (1,) * (native.ndim - 2)), other, native)
    results = [native, other]
    for frame, hole in frames:
        results = [compositing.at_own_size(picture, frame, hole, painted) for picture in results]
    assert results[0].shape == native.shape and results[0].dtype == native.dtype
    np.testing.assert_array_equal(results[0][~changes], native[~changes])
    np.testing.assert_array_equal(*results)  # sealed: nothing that was under the mask is left


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, KINDS, st.booleans(), st.integers(0, 10 ** 6))
def test_a_written_png_holds_the_pixels_and_the_profile(tmp_path_factory, height, width, kind, profile, seed):
    path = tmp_path_factory.mktemp('png') / 'a.png'
    pixels = noise(seed, height, width, *kind)
    encode.write(path, pixels, icc_profile=SRGB if profile else None)
    found = images.load(path)
    np.testing.assert_array_equal(found.native, pixels)
    assert found.native.dtype == pixels.dtype and found.icc_profile == (SRGB if profile else None)
    np.testing.assert_array_equal(pixels_of(path), pixels)


@settings(max_examples=80, deadline=None)
@given(st.integers(8, 200), st.integers(8, 200), st.integers(0, 10 ** 6))
def test_the_frame_around_a_hole_holds_all_of_it_and_is_square_where_it_can_be(height, width, seed):
    rng = np.random.default_rng(seed)
    top, left = rng.integers(height), rng.integers(width)
    hole = np.zeros((height, width), bool)
    hole[top:rng.integers(top, height) + 1, left:rng.integers(left, width) + 1] = True
    [box] = geometry.boxes_around(hole)
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
def test_a_colour_that_is_off_in_the_hole_leaves_neither_a_seam_nor_a_stain(offset, shape, everywhere):
    """A smooth picture painted right but for a constant, on known pixels too or in the hole alone."""
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
    assert np.abs(result - native).max() <= 3
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
