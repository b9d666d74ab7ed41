"""What tests/benchmarks/quality.py computes from files, against hand-made numbers; nothing is measured here."""
from __future__ import annotations

import csv
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest

from ict.data import codebook, encode
from ict.errors import UserError
from ict.runs import inputs
from tests.benchmarks import quality
from tests.conftest import photograph
from Transformer import infer as stage_1


@pytest.mark.parametrize('name, steps, schedule, deterministic, reuse', [
    ('sequential', 0, 'raster', False, None), ('sequential-hole', 0, 'raster', False, 'hole'),
    ('halton-16', 16, 'halton', False, None), ('halton-64-none', 64, 'halton', False, 'none'),
    ('confidence-8-hole', 8, 'confidence', False, 'hole')])
def test_a_settings_name_says_what_run_py_does(name, steps, schedule, deterministic, reuse):
    import run
    args = run.arguments(['--transformer_ckpt', 'a', '--upsample_ckpt', 'b', *quality.setting_options(name)])
    assert (args.sample_steps, args.schedule, args.deterministic, args.reuse) == (steps, schedule, deterministic, reuse)
    assert run.arguments(quality.setting_options('deterministic')).deterministic


@pytest.mark.parametrize('name', ['', 'halton', 'halton-', 'spiral-4', 'halton-4-slow', 'halton-4-none-2',
                                  'deterministic-none'])
def test_other_names_are_refused(name):
    with pytest.raises(UserError, match='is neither'):
        quality.setting_options(name)


@pytest.mark.parametrize('geometry', ['crop', 'resize', 'hole'])
def test_a_scene_has_stage_1s_hole_and_the_tokens_that_it_would_see_without_one(colours, geometry):
    rgb, grey = photograph(0, 90, 130), np.zeros((90, 130), np.uint8)
    grey[20:33, 25:60] = 255
    tokenizer, view = codebook.Tokenizer(colours), inputs.View(geometry=geometry)
    model = SimpleNamespace(config=SimpleNamespace(prior_size=16), tokenizer=tokenizer)
    (tokens, hole), = stage_1.frames_of(rgb, grey, view, model)

    scene = quality.scene_of(rgb, grey, geometry, 16, tokenizer)

    assert 0 < hole.mean() < 1
    np.testing.assert_array_equal(scene.token_hole.reshape(-1), hole)
    near = np.pad(scene.token_hole, 2)
    near = np.any([near[i:i + 16, j:j + 16] for i in range(5) for j in range(5)], 0)  # other weights there
    np.testing.assert_array_equal(scene.tokens[~near], tokenizer.codebook_rgb[tokens].reshape(16, 16, 3)[~near])
    if geometry != 'hole':  # which would frame something else
        (whole, _), = stage_1.frames_of(rgb, np.zeros_like(grey), view, model)
        np.testing.assert_array_equal(scene.tokens, tokenizer.codebook_rgb[whole].reshape(16, 16, 3))


def test_scores_are_those_of_the_files(tmp_path):
    rng = np.random.default_rng(0)
    hole, token_hole = rng.random((256, 256)) < 0.3, rng.random((8, 8)) < 0.3
    scene = quality.Scene(hole, rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), token_hole)
    results = rng.integers(0, 256, (3, 256, 256, 3), dtype=np.uint8)
    priors = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    table_rows = []
    for k in range(3):
        encode.write(tmp_path / 'halton-4' / f'deep/a_{k}.png', results[k])
        encode.write(tmp_path / 'halton-4' / 'AP' / f'condition_{k + 1}' / 'deep/a.png', priors[k])
        table_rows.append({'id': 'deep/a', 'result': k, 'psnr': 20 + k, 'mae': 0.1 * k, 'ssim': 0.5, 'l1': 3,
                           'l1_hole': 9})
    with open(tmp_path / 'halton-4' / 'metrics.csv', 'w', newline='') as stream:
        table = csv.DictWriter(stream, list(table_rows[0]))
        table.writeheader()
        table.writerows(table_rows)

    row, = quality.scored(tmp_path, 'halton-4', 3, {'failed': scene, 'deep/a': scene})

    assert row['id'] == 'deep/a' and row['hole'] == hole.mean()
    assert (row['psnr'], row['ssim'], row['l1_hole']) == (21, 0.5, 9) and row['mae'] == pytest.approx(0.1)
    wrong = priors[:, token_hole].astype(float) - scene.tokens[token_hole]
    assert row['prior_l1'] == pytest.approx(np.abs(wrong).mean())
    assert row['diversity'] == pytest.approx(np.mean([
        np.abs(a[hole].astype(float) - b[hole]).mean() for a, b in itertools.combinations(results, 2)]))


def test_differences_are_taken_picture_by_picture():
    def rows_of(**values):
        return [{'id': name, 'psnr': value} for name, value in values.items()]

    reference, rows = rows_of(a=20.0, b=30.0, c=10.0, d=math.inf), rows_of(c=11.0, a=20.5, b=33.0, d=9.0, e=1.0)
    mean, error = quality.paired(rows, reference, 'psnr')
    assert mean == pytest.approx(1.5) and error == pytest.approx(np.std([1, 0.5, 3], ddof=1) / math.sqrt(3))
    assert quality.paired(rows[:1], reference, 'psnr')[0] == 1.0
    assert all(math.isnan(x) for x in quality.paired(rows[4:], reference, 'psnr'))
