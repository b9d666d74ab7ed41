"""Pictures, masks, geometry, palette and metrics: the published arrays, and nothing of the hole gets through."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from Guided_Upsample.datasets import dataset as stage_2
from Guided_Upsample.datasets.degradation import degrade
from ict import palette
from ict.data import codebook, geometry, images, masks, pairs
from ict.runs import metrics
from ict.training.epoch_sampler import EpochSampler
from ict.training.mask_sources import Block, MaskFiles, PairedFile, RandomFile
from tests.conftest import parity, photograph
from Transformer.datasets import dataset as stage_1


@pytest.fixture(scope='module')
def data() -> dict[str, np.ndarray]:
    return parity('data.npz')


@pytest.mark.parametrize('n', [1, 2, 5, 9, 40])
def test_nearest_colours_are_those_of_a_full_search_also_when_they_tie(n):
    rng = np.random.default_rng(n)
    centres = np.concatenate([rng.uniform(-1, 1, (20, 3)), np.repeat(rng.uniform(-1, 1, (3, 3)), 3, 0)])
    pixels = rng.integers(0, 256, (300, 3), dtype=np.uint8)
    distance = ((pixels[:, None] - 127.5 * (centres + 1.0)) ** 2).sum(-1)
    expected = [sorted(range(len(centres)), key=lambda c: (row[c], c))[:n] for row in distance]
    np.testing.assert_array_equal(codebook.neighbours(pixels, centres, n), expected)


def test_published_mode_of_stage_1_equals_the_published_tokens_and_mask(data):
    size = int(data['prior_size'])
    small, hole = stage_1.published_view(data['image'], data['mask'], 'published', size)
    np.testing.assert_array_equal(codebook.Tokenizer(data['palette'])(small).reshape(-1), data['tokens'])
    np.testing.assert_array_equal(hole, data['token_mask'])


def test_published_mode_of_stage_2_equals_the_published_arrays(data):
    image, hole = stage_2.published_view(data['image'], data['mask'], 'published', 256)
    np.testing.assert_array_equal(image, data['infer_image'])
    np.testing.assert_array_equal(hole * np.uint8(255), data['infer_mask'])
    prior = codebook.to_rgb(data['palette'])[data['tokens']].reshape(32, 32, 3)
    np.testing.assert_array_equal(images.bicubic(prior, 256, 256), data['infer_prior'])


@pytest.mark.parametrize(('bilinear', 'wanted'), [(False, 'degraded_area'), (True, 'degraded_bilinear')])
def test_degradations_equal_the_published(data, bilinear, wanted):
    prior = degrade(data['image'], data['palette'], 32, bilinear, 1, np.random.default_rng(0))
    np.testing.assert_array_equal(prior, data[wanted])


def test_degradation_of_degree_n_uses_the_n_nearest_colours_only(data):
    levels, degree = codebook.to_rgb(data['palette']), 3
    prior = degrade(data['image'], data['palette'], 32, True, degree, np.random.default_rng(0)).reshape(-1, 3)
    small = images.shrink(data['image'], 32).reshape(-1, 3)
    near = codebook.neighbours(small, data['palette'], degree)
    assert all((prior[i] == levels[near[i]]).all(-1).any() for i in range(len(prior)))
    assert len({int(np.flatnonzero((prior[i] == levels[near[i]]).all(-1))[0]) for i in range(len(prior))}) == degree


def test_metrics_equal_the_published(data):
    image, result = data['metric_a'], data['metric_b']
    assert metrics.psnr(result, image) == pytest.approx(float(data['psnr']), abs=1e-4)
    assert metrics.mae(result, image) == pytest.approx(float(data['mae']), rel=1e-5)


def test_metrics_of_equal_pictures():
    picture = photograph(0) / np.float32(255)
    assert metrics.psnr(picture, picture) == np.inf
    assert metrics.mae(picture, picture) == 0.0
    assert metrics.ssim(picture, picture) == 1.0
    hole = np.zeros(picture.shape[:2], bool)
    hole[:4] = True
    brighter = picture.copy()
    brighter[:4] += np.float32(0.1)
    assert metrics.l1_in_hole(brighter, picture, hole) == pytest.approx(25.5, rel=1e-5)


@pytest.mark.parametrize('coarse', [False, True])
def test_quantiser_is_exact_and_ties_go_to_the_lowest_index(colours, coarse):
    centres = np.round(colours * 4) / 4 if coarse else colours  # coarse: many equal colours, so many ties
    pixels = np.random.default_rng(0).integers(0, 256, (4000, 3), dtype=np.uint8)
    k = codebook.to_rgb(centres).astype(np.int64)
    wanted = ((pixels[:, None].astype(np.int64) - k) ** 2).sum(-1).argmin(1)
    np.testing.assert_array_equal(codebook.Tokenizer(centres)(pixels), wanted)


def test_palette_levels_round_as_the_spec_says():
    centres = np.array([[-1, 0, 1], [0.5, -0.003, 0.9999]], np.float32)
    np.testing.assert_array_equal(codebook.to_rgb(centres), np.rint(127.5 * (centres.astype(np.float64) + 1)))


def test_kmeans_finds_the_colours_that_are_there_and_is_repeatable():
    true = np.array([[10, 20, 30], [200, 30, 90], [90, 220, 40], [250, 250, 250]])
    pixels = np.repeat(true, 500, 0) + np.random.default_rng(0).integers(-3, 4, (2000, 3))
    fitted = palette.fit(pixels.astype(np.uint8), 4, seed=1)
    assert fitted.dtype == np.float32 and np.abs(fitted).max() <= 1
    found = codebook.to_rgb(fitted).astype(int)
    assert all(np.abs(found - colour).max(1).min() <= 1 for colour in true)
    np.testing.assert_array_equal(fitted, palette.fit(pixels.astype(np.uint8), 4, seed=1))


def test_the_bundled_palette_is_a_palette():
    centres = codebook.load(codebook.REPOSITORY_PALETTE)
    assert centres.shape == (512, 3) and centres.dtype == np.float32
    assert len(np.unique(codebook.to_rgb(centres), axis=0)) > 500


# ---------------------------------------------------------------- sealed geometry

def cells_touching(hole: np.ndarray, height: int, width: int) -> np.ndarray:
    """Brute force: a cell is [i H / h, (i + 1) H / h) in pixels; it touches every pixel that it overlaps."""
    out = np.zeros((height, width), bool)
    big_h, big_w = hole.shape
    for i in range(height):
        for j in range(width):
            rows = [y for y in range(big_h) if y * height < (i + 1) * big_h and (y + 1) * height > i * big_h]
            columns = [x for x in range(big_w) if x * width < (j + 1) * big_w and (x + 1) * width > j * big_w]
            out[i, j] = hole[np.ix_(rows, columns)].any()
    return out


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 23), st.integers(1, 23), st.integers(1, 17), st.integers(1, 17), st.integers(0, 10 ** 6))
def test_a_hole_grows_to_every_cell_that_it_touches(big_h, big_w, height, width, seed):
    hole = np.random.default_rng(seed).random((big_h, big_w)) < 0.1
    np.testing.assert_array_equal(geometry.touched(hole, height, width), cells_touching(hole, height, width))


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 90), st.integers(8, 90), st.sampled_from([8, 32, 64]), st.sampled_from(geometry.GEOMETRIES[:3]),
       st.sampled_from([0.0, 0.01, 0.3, 0.95]), st.sampled_from([Image.BILINEAR, Image.BICUBIC]), st.integers(0, 10**6))
def test_no_pixel_under_the_mask_changes_what_a_network_sees(height, width, size, name, share, resample, seed):
    rng = np.random.default_rng(seed)
    rgb, other = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    grey = np.where(rng.random((height, width)) < share, np.uint8(255), np.uint8(0))
    grey[rng.integers(height), rng.integers(width)] = 128  # one pixel just above the level
    other = np.where((grey > geometry.HOLE_LEVEL)[..., None], other, rgb)
    seen = []
    for picture in (rgb, other):
        views = []
        for frame, hole in geometry.frames_in(grey, height, width, name):
            assert hole.shape == (frame.height, frame.width)
            image, small = geometry.sealed(geometry.cut(picture, frame), hole, size, resample)
            assert image.shape == (size, size, 3) and small.shape == (size, size)
            views.append((image.tobytes(), small.tobytes()))
        seen.append(views)
    assert seen[0] == seen[1]


def test_without_a_hole_sealed_sees_what_the_published_code_sees():
    rgb = photograph(3, 80, 80)
    nothing = np.zeros((80, 80), bool)
    small, _ = geometry.sealed(rgb, nothing, 32, Image.BILINEAR)
    np.testing.assert_array_equal(small, images.shrink(rgb, 32))
    large, _ = geometry.sealed(rgb, nothing, 256, Image.BICUBIC)
    np.testing.assert_array_equal(large, images.bicubic(rgb, 256, 256))


def test_far_from_the_hole_sealed_pixels_are_the_published_ones():
    rgb = photograph(4, 320, 320)
    hole = np.zeros((320, 320), bool)
    hole[:60, :60] = True
    large, small_hole = geometry.sealed(rgb, hole, 256, Image.BICUBIC)
    plain = images.bicubic(rgb, 256, 256)
    np.testing.assert_array_equal(large[64:], plain[64:])
    near = ~small_hole
    assert np.abs(large[near].astype(int) - plain[near]).max() < 60  # and next to it plausible ones


def test_a_visible_token_is_the_mean_of_its_visible_pixels():
    rgb = np.zeros((64, 64, 3), np.uint8)
    rgb[:, :32] = 200  # the right half is hole, and black: nothing of it may darken the left half
    hole = np.zeros((64, 64), bool)
    hole[:, 32:] = True
    image, small = geometry.sealed(rgb, hole, 8, Image.BILINEAR)
    assert (image[:, :4] == 200).all() and not small[:, :4].any() and small[:, 4:].all()


def test_masks_of_other_size_follow_the_picture():
    grey = np.zeros((32, 48), np.uint8)
    grey[16, 24] = 255
    frame, hole = geometry.hole_in(grey, 64, 96, 'crop')  # same proportions: laid over the picture
    assert frame == (0, 16, 64, 64) and hole[32:34, 32:34].all() and hole.sum() == 4
    square = np.zeros((16, 16), np.uint8)
    square[0, 0] = 255
    frame, hole = geometry.hole_in(square, 64, 96, 'crop')  # a square mask belongs to the middle square
    assert hole[:4, :4].all() and hole.sum() == 16
    _, hole = geometry.hole_in(square, 64, 96, 'resize')
    assert hole.shape == (64, 96) and hole[:4, :6].all() and hole.sum() == 24


def test_the_frame_around_a_hole_holds_it():
    hole = np.zeros((300, 500), bool)
    hole[280:300, 10:40] = True
    [box] = geometry.boxes_around(hole)
    assert geometry.cut(hole, box).sum() == hole.sum() and box.height == box.width == 256


# ---------------------------------------------------------------- training examples and drawn masks

@pytest.fixture
def slope(tmp_path) -> dict[str, pairs.Listing]:
    """A picture that says where its pixels are: red grows to the right, green downwards; the mask is its right part."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.linspace(0, 255, 96)[None], np.linspace(0, 255, 64)[:, None]
    mask = np.zeros((64, 96), np.uint8)
    mask[:, 60:] = 255
    square = np.ascontiguousarray(pixels[:, 16:80])
    found = {}
    for name, content in (('image', pixels), ('mask', mask), ('AP/condition_1', images.shrink(square, 8))):
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(content).save(tmp_path / name / 'a.png')
        found[name] = pairs.listing(tmp_path / name, name)
    return found


def test_training_examples_of_stage_2_keep_image_mask_and_prior_together(slope, colours):
    source = stage_2.Source(slope['image'], PairedFile(MaskFiles(slope['mask']), slope['image']),
                            [slope['AP/condition_1'].path(0).parent], colours, stage_2.ExampleConfig(64, 8))
    flipped = []
    for seed in range(20):
        image, prior, hole = source.training_example(0, np.random.default_rng(seed), 0.5, [])
        flipped.append(bool(image[0, 0, 0] > image[0, -1, 0]))
        assert abs(int(image[..., 0].max()) - int(image[..., 0].min()) - 255 * 63 / 95) <= 3  # all of the square
        assert np.abs(prior.astype(int) - image)[8:-8, 8:-8].max() < 12
        columns = np.flatnonzero(hole.all(0))
        assert (columns == (np.arange(20) if flipped[-1] else np.arange(44, 64))).all() and hole.sum() == 20 * 64
    assert 4 < sum(flipped) < 16


def test_training_crops_of_both_stages_are_squares_of_the_sides_asked_for(slope, colours):
    free = stage_2.Source(slope['image'], Block(), None, colours, stage_2.ExampleConfig(64, 8))
    masks_1 = RandomFile(MaskFiles(slope['mask']))
    batches = stage_1.TrainingBatches(slope['image'], masks_1, codebook.Tokenizer(colours), 32, EpochSampler(1, 1, 0),
                                      0.5)
    spans: dict[str, list[tuple[float, float]]] = {'1': [], '2': []}
    flips: dict[str, list[bool]] = {'1': [], '2': []}
    for step in range(40):
        image, prior, _ = free.training_example(0, np.random.default_rng(step), 0.5, [])
        (tokens, hole), _ = batches(step)
        assert np.abs(prior.astype(int) - image).mean() < 25  # the same crop, in palette colours
        np.testing.assert_array_equal(hole.reshape(32, 32), np.arange(32)[None] * np.ones((32, 1)) >= 20)
        for name, pixels in (('1', codebook.to_rgb(colours)[tokens[0]].reshape(32, 32, 3)), ('2', image)):
            pixels = pixels.astype(float)
            spans[name].append((np.ptp(pixels[..., 0].mean(0)) * 95, np.ptp(pixels[..., 1].mean(1)) * 63))
            flips[name].append(pixels[:, 0, 0].mean() > pixels[:, -1, 0].mean())
    for name, sides in spans.items():
        sides = np.array(sides) / 255  # in pixels of the picture
        assert np.abs(sides[:, 0] - sides[:, 1]).max() < 12  # square, as far as palette colours tell
        assert sides.min() > 20 and sides.max() < 66 and np.ptp(sides) > 20
        assert 8 < sum(flips[name]) < 32


def test_strokes_are_repeatable_and_within_the_range_asked_for():
    one, same, other = (masks.strokes(np.random.default_rng(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    for seed in range(5):
        assert 0.2 <= masks.strokes_within(np.random.default_rng(seed), 0.2, 0.4).mean() <= 0.4
    with pytest.raises(ValueError, match='no mask'):
        masks.strokes_within(np.random.default_rng(0), 0.99, 1.0, tries=5)


def test_strokes_cover_what_the_published_ones_do():
    share = [masks.strokes(np.random.default_rng(i)).mean() for i in range(200)]
    assert 0.15 < np.mean(share) < 0.45 and min(share) < 0.03 and max(share) > 0.5


def test_a_block_is_a_square_of_half_the_side():
    hole = masks.block(np.random.default_rng(0), 64)
    rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
    assert hole.sum() == 32 * 32 and len(rows) == len(columns) == 32
