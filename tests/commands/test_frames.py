"""--geometry hole: groups of the hole that lie far apart are completed in frames of their own."""
from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from ict.data import images
from tests.conftest import command, files_of, module, photograph


def run(tiny, folder, *more):
    return command('run.py', '--transformer_ckpt', tiny['transformer'], '--upsample_ckpt', tiny['generator'],
                   '--input_image', folder / 'photo.png', '--input_mask', folder / 'mask.png', '--save_place',
                   folder / 'save', '--sample_steps', 2, '--geometry', 'hole', '--sample_num', 2, *more)


def prepared(folder, spots):
    photo = photograph(4, 600, 1000)
    mask = np.zeros((600, 1000), np.uint8)
    for top, left in spots:
        mask[top:top + 12, left:left + 20] = 255
    Image.fromarray(photo).save(folder / 'photo.png')
    Image.fromarray(mask).save(folder / 'mask.png')
    return photo, mask > 0


def test_every_group_is_filled_from_a_prior_of_its_own_and_known_pixels_stay(tiny, tmp_path):
    photo, hole = prepared(tmp_path, [(20, 30), (40, 700), (450, 350)])
    done = run(tiny, tmp_path, '--keep_size')
    assert done.returncode == 0, done.stderr
    priors = sorted(path.name for path in (tmp_path / 'save' / 'AP' / 'condition_2').iterdir())
    assert priors == ['photo@1.png', 'photo@2.png', 'photo@3.png']
    contents = {(tmp_path / 'save' / 'AP' / 'condition_1' / name).read_bytes() for name in priors}
    assert len(contents) == 3
    result = images.load_rgb(tmp_path / 'save' / 'photo_0.png')
    np.testing.assert_array_equal(result[~hole], photo[~hole])
    for top, left in ((20, 30), (40, 700), (450, 350)):
        assert (result[top:top + 12, left:left + 20] != photo[top:top + 12, left:left + 20]).any()
    lines = [json.loads(line) for line in (tmp_path / 'save' / 'results.jsonl').read_text().splitlines()]
    assert [line['frames'] for line in lines] == [3, 3]


def test_a_resume_makes_what_is_missing_of_a_result_and_keeps_the_rest(tiny, tmp_path):
    prepared(tmp_path, [(20, 30), (40, 700)])
    assert run(tiny, tmp_path, '--keep_size').returncode == 0
    wanted = files_of(tmp_path / 'save')
    (tmp_path / 'save' / 'AP' / 'condition_1' / 'photo@2.png').unlink()
    (tmp_path / 'save' / 'photo_1.png').unlink()
    again = run(tiny, tmp_path, '--keep_size')
    assert '1 finished priors are kept' in again.stderr and '1 finished results are kept' in again.stderr
    assert files_of(tmp_path / 'save') == wanted


def test_a_mask_with_fewer_groups_leaves_no_prior_of_the_former_ones(tiny, tmp_path):
    prepared(tmp_path, [(20, 30), (40, 700)])
    assert run(tiny, tmp_path, '--keep_size').returncode == 0
    prepared(tmp_path, [(20, 30)])
    assert run(tiny, tmp_path, '--keep_size').returncode == 0
    assert [path.name for path in (tmp_path / 'save' / 'AP' / 'condition_1').iterdir()] == ['photo.png']


def test_without_keep_size_several_groups_are_an_error_that_names_the_remedy(tiny, tmp_path):
    prepared(tmp_path, [(20, 30), (40, 700)])
    done = run(tiny, tmp_path)
    assert done.returncode == 2 and 'has 2 holes far apart' in done.stderr and 'add --keep_size' in done.stderr


def test_an_evaluation_scores_pictures_with_several_groups_at_their_own_size(tiny, tmp_path):
    photo, hole = prepared(tmp_path, [(20, 30), (40, 700)])
    done = module('ict.evaluate', '--input', tmp_path / 'photo.png', '--mask', tmp_path / 'mask.png', '--save_place',
                  tmp_path / 'scores', '--transformer_ckpt', tiny['transformer'], '--upsample_ckpt', tiny['generator'],
                  '--geometry', 'hole', '--sample_num', 2, '--sample_steps', 1)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / 'scores' / 'evaluation.csv', newline='') as stream:
        rows = {row['method']: row for row in csv.DictReader(stream)}
    for method, path in (('deterministic', 'deterministic/photo_0.png'), ('OpenCV, Telea', 'telea/photo_0.png')):
        result = images.load_rgb(tmp_path / 'scores' / path)
        assert float(rows[method]['l1_hole']) == pytest.approx(np.abs(result[hole].astype(int) - photo[hole]).mean())
        assert float(rows[method]['hole']) == hole.mean()
        np.testing.assert_array_equal(result[~hole], photo[~hole])
    np.testing.assert_array_equal(images.load_rgb(tmp_path / 'scores' / 'originals' / 'photo_1.png'), photo)
    assert images.load_rgb(tmp_path / 'scores' / 'sheet.png').shape[0] == 256 + 22 + 6


def test_a_picture_called_like_a_frame_of_another_one_is_an_error(tiny, tmp_path):
    photo, _ = prepared(tmp_path, [(20, 30), (40, 700)])
    Image.fromarray(photo).save(tmp_path / 'photo@1.png')
    (tmp_path / 'list.txt').write_text(f'{tmp_path}/photo.png\n{tmp_path}/photo@1.png\n')
    done = run(tiny, tmp_path, '--keep_size', '--input_image', tmp_path / 'list.txt')
    assert done.returncode == 2 and 'photo@1.png: with --geometry hole its priors may have' in done.stderr
