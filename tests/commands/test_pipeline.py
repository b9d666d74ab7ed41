"""The Python call gives what run.py gives, to one caller at a time, and can be watched and cancelled."""
from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from ict.data import images, masks
from ict.errors import UserError
from ict.pipeline import Cancelled, Pipeline, decoded, levels_of
from ict.runs import inputs
from tests.conftest import command, photograph


@pytest.fixture(scope='module')
def pipe(tiny) -> Pipeline:
    return Pipeline.load(transformer_ckpt=tiny['transformer'], upsample_ckpt=tiny['generator'])


@pytest.mark.parametrize('options', [{'geometry': 'crop', 'keep_size': False}, {}, {'geometry': 'hole', 'dilate': 2},
                                     {'deterministic': True}, {'invert_mask': True, 'temperature': 0.5, 'seed': 3}])
def test_the_same_bytes_as_run_py(pipe, tiny, folders, options):
    words = {'keep_size': True, **options}
    done = command('run.py', '--transformer_ckpt', tiny['transformer'], '--upsample_ckpt', tiny['generator'],
                   '--input_image', folders['images'], '--input_mask', folders['masks'], '--save_place',
                   folders['save'], '--sample_num', 2, '--sample_steps', 4,
                   *[f'--{name}={value}' for name, value in words.items()])
    assert done.returncode == 0, done.stderr
    for name in ('p0', 'p2'):
        completions = pipe(folders['images'] / f'{name}.png', folders['masks'] / f'{name}.png', samples=2, steps=4,
                           name=name, **options)
        for k, completion in enumerate(completions):
            assert completion.png() == (folders['save'] / f'{name}_{k}.png').read_bytes()
            with Image.open(folders['save'] / 'AP' / f'condition_{k + 1}' / f'{name}.png') as prior:
                np.testing.assert_array_equal(completion.prior, prior)


def test_pictures_may_be_files_arrays_or_pil(pipe, folders):
    paths = folders['images'] / 'p0.png', folders['masks'] / 'p0.png'
    pictures = [Image.open(path) for path in paths]
    arrays = [np.asarray(picture) for picture in pictures]
    [wanted] = pipe(*paths, steps=2)
    for image, mask in (pictures, arrays, (arrays[0], arrays[1] > 127), map(str, paths)):
        [completion] = pipe(image, mask, steps=2)
        np.testing.assert_array_equal(completion.picture, wanted.picture)


def test_a_completion_is_saved_in_the_format_of_the_ending(pipe, folders, tmp_path):
    [completion] = pipe(folders['images'] / 'p0.png', folders['masks'] / 'p0.png', steps=2)
    for name, kind in (('a.png', 'PNG'), ('a.JPG', 'JPEG'), ('a.jpeg', 'JPEG'), ('a.webp', 'WEBP')):
        completion.save(tmp_path / name)
        with Image.open(tmp_path / name) as saved:
            assert saved.format == kind and saved.size == completion.picture.shape[1::-1]
    assert (tmp_path / 'a.png').read_bytes() == completion.png()
    for name in ('a.tiff', 'a'):
        with pytest.raises(UserError, match=r'has none of the endings \.png'):
            completion.save(tmp_path / name)


def test_pil_pictures_are_read_as_their_files_are(pipe, folders, tmp_path):
    turned, exif = photograph(0, 64, 48), Image.Exif()
    exif[0x0112], exif[0x010F] = 6, 'Maker'
    Image.fromarray(turned).save(tmp_path / 'turned.png', exif=exif)
    Image.fromarray(np.pad(np.full((30, 20), 255, np.uint8), ((20, 14), (10, 18)))).save(tmp_path / 'mask.png')
    paths = tmp_path / 'turned.png', tmp_path / 'mask.png'  # a mask for the stored pixels
    [wanted] = pipe(*paths, steps=2)
    assert wanted.picture.shape == (48, 64, 3)
    [completion] = pipe(*map(Image.open, paths), steps=2)
    np.testing.assert_array_equal(completion.picture, wanted.picture)
    Image.fromarray(turned).save(tmp_path / 'turned.tif', exif=exif)
    [completion] = pipe(Image.open(tmp_path / 'turned.tif'), Image.open(paths[1]), steps=2)
    np.testing.assert_array_equal(completion.picture, wanted.picture)
    for kind, mode in (('PNG', 'LA'), ('PNG', 'P'), ('PNG', '1'), ('JPEG', 'CMYK'), ('JPEG', 'RGB')):
        place = tmp_path / f'{mode}.{kind.lower()}'
        Image.fromarray(photograph(0)).convert(mode).save(place, kind, exif=exif, icc_profile=b'profile',
                                                          **({'transparency': 3} if mode == 'P' else {}))
        read, wanted = decoded(Image.open(place), 'image'), images.load(place)
        np.testing.assert_array_equal(read.native, wanted.native)
        assert (read.icc_profile, read.exif, read.orientation) == (wanted.icc_profile, wanted.exif, 6)
    (tmp_path / 'short.jpeg').write_bytes((tmp_path / 'RGB.jpeg').read_bytes()[:-300])
    with pytest.raises(UserError, match='image: unreadable image'):
        decoded(Image.open(tmp_path / 'short.jpeg'), 'image')
    Image.fromarray(np.full((48, 64), 30000, np.uint16)).save(tmp_path / 'deep.png')
    with pytest.raises(UserError, match='image: an array of uint16'):  # Pillow would clip it to white
        pipe(Image.open(tmp_path / 'deep.png'), folders['masks'] / 'p0.png')


def test_the_transparent_part_of_an_inverted_mask_is_no_hole(pipe, tmp_path):
    rgba = np.full((48, 64, 4), 255, np.uint8)
    rgba[10:30, 10:30, :3] = rgba[:, 50:] = 0
    Image.fromarray(rgba).save(tmp_path / 'mask.png')
    view = inputs.View(invert_mask=True)
    wanted, _ = masks.read(tmp_path / 'mask.png', True, 0, 0)
    picture = decoded(photograph(0), 'image')
    for mask in (tmp_path / 'mask.png', Image.open(tmp_path / 'mask.png')):
        np.testing.assert_array_equal(levels_of(mask, picture, view), wanted)


def test_unpainted_pixels_are_the_photographs_bit_for_bit_with_alpha_and_profile(pipe):
    rgba = np.dstack([photograph(1), np.full((48, 64), 90, np.uint8)])
    hole = np.zeros((48, 64), bool)
    hole[10:30, 20:44] = True
    [completion] = pipe(rgba, hole, steps=2)
    np.testing.assert_array_equal(completion.picture[~hole], rgba[~hole])
    assert (completion.picture[hole][:, :3] != rgba[hole][:, :3]).any()
    assert Image.open(io.BytesIO(completion.png())).mode == 'RGBA' and completion.image().mode == 'RGB'


def test_several_threads_get_what_one_would(pipe, folders):
    names = ['p0', 'p1', 'p2'] * 2

    def one(name: str) -> bytes:
        return pipe(folders['images'] / f'{name}.png', folders['masks'] / f'{name}.png', steps=3, name=name)[0].png()

    wanted = [one(name) for name in names]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(one, names)) == wanted


def test_progress_counts_the_passes_of_all_samples_and_cancel_ends_the_call(pipe, folders):
    seen, cancel = [], threading.Event()
    paths = folders['images'] / 'p1.png', folders['masks'] / 'p1.png'
    pipe(*paths, samples=3, steps=4, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 12) for done in range(1, 13)]

    def stop(done: int, _: int) -> None:
        if done == 2:
            cancel.set()

    with pytest.raises(Cancelled):
        pipe(*paths, samples=3, steps=4, progress=stop, cancel=cancel)
    assert len(pipe(*paths, steps=4)) == 1  # goes on working


@pytest.mark.parametrize(('image', 'mask', 'line'), [
    ('missing.png', 'm.png', 'missing.png: no such image'),
    (np.zeros((20, 20, 5), np.uint8), np.ones((20, 20), bool), 'image: an array of uint8'),
    (photograph(0), np.zeros((48, 64), bool), 'mask: nothing'),
])
def test_wrong_pictures_are_one_line(pipe, image, mask, line):
    with pytest.raises(UserError, match=line) as said:
        pipe(image, mask)
    assert '\n' not in str(said.value)


@pytest.mark.parametrize(('how', 'line'), [
    ({'samples': 0}, 'samples 0, steps 16: must be at least 1'), ({'steps': -1}, 'steps -1: must be'),
    ({'temperature': 0.0}, 'temperature 0.0: must be above 0'), ({'top_k': 0}, 'top_k 0: must be at least 1'),
    ({'seed': -1}, 'seed -1: must be at least 0'), ({'dilate': -1}, 'dilate -1: must be at least 0'),
    ({'schedule': 'random'}, 'schedule random: is none of raster, halton, confidence'),
    ({'reuse': 'window'}, 'reuse window: is none of none, hole'),
    ({'geometry': 'published'}, 'geometry published: is none of crop, resize, hole'),
])
def test_values_out_of_range_are_one_line(pipe, how, line):
    with pytest.raises(UserError, match=line) as said:
        pipe(photograph(0), np.ones((48, 64), bool), **how)
    assert '\n' not in str(said.value)


@pytest.mark.parametrize(('how', 'line'), [
    ({'geometry': 'crop'}, 'image: the hole reaches out of the crop frame'),
    ({'geometry': 'hole', 'keep_size': False}, 'image: has 2 holes far apart'),
])
def test_a_hole_is_never_left_out(pipe, how, line):
    hole = np.zeros((48, 480), bool)
    hole[20:28, 4:12] = hole[20:28, 460:468] = True
    with pytest.raises(UserError, match=line):
        pipe(photograph(0, 48, 480), hole, **how)


def test_wrong_models_are_one_line(tiny):
    with pytest.raises(UserError, match='--model imagenet: is none of demo, ImageNet'):
        Pipeline.load('imagenet')
    with pytest.raises(UserError, match='holds a Generator, not a Transformer'):
        Pipeline.load(transformer_ckpt=tiny['generator'], upsample_ckpt=tiny['generator'])
    with pytest.raises(UserError, match='give both'):
        Pipeline.load(transformer_ckpt=tiny['transformer'])
