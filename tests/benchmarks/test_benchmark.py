"""What tests/benchmarks/benchmark.py computes from clocks and files, against hand-made numbers; it measures nothing
here."""
from __future__ import annotations

import csv
import itertools
import math

import numpy as np
import pytest

from ict.data import codebook, images
from ict.data import geometry as data_geometry
from ict.errors import UserError
from ict.runs import inputs
from tests.benchmarks import benchmark
from tests.conftest import photograph
from Transformer import infer as stage_1

COMPILING, PASS, DRAWING = 5.0, 0.5, 0.25


def process(pictures: int, passes: int, rows: int = 1) -> dict:
    """The clocks of a stage 1 that took exactly so long, ``rows`` pictures in a batch."""
    clock = benchmark.Clock()
    clock.add('import', 2.0)
    clock.add('load', 1.0)
    for batch in range(pictures // rows):
        for i in range(passes):
            clock.add('pass', rows * PASS + (COMPILING if batch == i == 0 else 0.0), rows)
        clock.add('work', rows * passes * (PASS + DRAWING) + (COMPILING if batch == 0 else 0.0), rows)
    clock.add('main', 100.0)
    return {'device': 'CPU', 'parts': clock.parts, 'peak_mb': 100.0 * pictures}


@pytest.mark.parametrize('rows', [1, 2])
def test_seconds_of_a_sample_leave_out_compilation_however_many_processes_made_them(rows):
    found = benchmark.seconds_of([process(6, 4, rows), process(2, 4, rows)])
    assert found == pytest.approx({'passes': 4, 'pass': PASS, 'result': 4 * (PASS + DRAWING), 'start': 3 + COMPILING,
                                   'peak_mb': 600})


def test_what_clocks_cannot_tell_is_nan():
    one = benchmark.seconds_of([process(1, 1)])
    assert one['passes'] == 1 and one['peak_mb'] == 100
    assert all(math.isnan(one[key]) for key in ('pass', 'result', 'start'))
    assert all(math.isnan(value) for value in benchmark.seconds_of([]).values())


def test_watched_methods_give_the_same_and_are_counted_by_row():
    class Model:
        def __call__(self, batch):
            return [2 * x for x in batch]

    clock = benchmark.Clock()
    clock.watch(Model, '__call__', 'pass')
    model = Model()
    assert model([1, 2, 3]) == [2, 4, 6] and model([4]) == [8] and model([5]) == [10]
    parts = clock.parts['pass']
    assert (parts['first_rows'], parts['later_rows']) == (3, 2)
    assert parts['first'] > 0 and parts['later'] > 0


def test_the_breakdown_of_a_run_adds_up():
    painting = process(1, 1)
    del painting['parts']['work']
    rows = {row['part']: row for row in benchmark.breakdown(230.0, [process(2, 4), painting])}
    assert rows['first pass, with compilation']['stage_1'] == COMPILING + PASS
    assert rows['further passes']['stage_1'] == 7 * PASS and rows['drawing of tokens']['stage_1'] == 8 * DRAWING
    for name in ('stage_1', 'stage_2'):
        before = itertools.takewhile(lambda row: row['part'] != 'together', rows.values())
        assert sum(row[name] for row in before) == pytest.approx(rows['together'][name]) == 100
    assert rows['run.py itself, starts and ends of the processes']['stage_1'] == 30 and rows['all']['stage_1'] == 230


@pytest.mark.parametrize('name, steps, schedule, step_schedule, deterministic', [
    ('sequential', 0, 'raster', 'cosine', False), ('halton-16', 16, 'halton', 'cosine', False),
    ('confidence-8-linear', 8, 'confidence', 'linear', False), ('deterministic', 0, None, 'cosine', True),
    ('sequential-reuse', 0, 'raster', 'cosine', False), ('halton-64-linear-reuse', 64, 'halton', 'linear', False)])
def test_a_settings_name_says_what_run_py_does(name, steps, schedule, step_schedule, deterministic):
    import run as whole
    args = whole.arguments(['--transformer_ckpt', 'a', '--upsample_ckpt', 'b', *benchmark.setting_options(name)])
    assert (args.sample_steps, args.schedule, args.step_schedule, args.deterministic) == (
        steps, schedule, step_schedule, deterministic)
    assert args.reuse_window == (3 if name.endswith('-reuse') else 0)


@pytest.mark.parametrize('name', ['', 'halton', 'halton-', 'spiral-4', 'halton-4-slow', 'halton-4-linear-2',
                                  'confidence-4-reuse', 'deterministic-reuse'])
def test_other_names_are_refused(name):
    with pytest.raises(UserError, match='is neither'):
        benchmark.setting_options(name)


@pytest.mark.parametrize('geometry', ['crop', 'resize', 'hole'])
def test_a_scene_has_stage_1s_hole_and_the_tokens_that_it_would_see_without_one(tmp_path, colours, geometry):
    rgb, grey = photograph(0, 90, 130), np.zeros((90, 130), np.uint8)
    grey[20:33, 25:60] = 255
    quantise = codebook.Tokenizer(colours)
    images.write_png(tmp_path / 'p' / 'x.png', rgb)
    images.write_png(tmp_path / 'm' / 'x.png', grey)
    work = inputs.find(tmp_path / 'p', '--input', tmp_path / 'm', '--mask', 0, tmp_path / 'none')
    tokens, hole = stage_1.prepare(work, 0, inputs.View(geometry=geometry), 16, quantise)

    scene = benchmark.scene_of(rgb, grey, geometry, 16, quantise)

    assert 0 < hole.mean() < 1
    np.testing.assert_array_equal(scene.token_hole.reshape(-1), hole)
    near = np.pad(scene.token_hole, 2)
    near = np.any([near[i:i + 16, j:j + 16] for i in range(5) for j in range(5)], 0)  # other weights there
    np.testing.assert_array_equal(scene.tokens[~near], quantise.codebook_rgb[tokens].reshape(16, 16, 3)[~near])
    frame, _ = data_geometry.hole_in(grey, 90, 130, geometry)
    whole = quantise(images.shrink(np.ascontiguousarray(data_geometry.cut(rgb, frame)), 16))
    np.testing.assert_array_equal(scene.tokens, quantise.codebook_rgb[whole])


def test_scores_are_those_of_the_files(tmp_path):
    rng = np.random.default_rng(0)
    hole, token_hole = rng.random((256, 256)) < 0.3, rng.random((8, 8)) < 0.3
    scene = benchmark.Scene(hole, rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), token_hole)
    results = rng.integers(0, 256, (3, 256, 256, 3), dtype=np.uint8)
    priors = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    with_figures = []
    for k in range(3):
        images.write_png(tmp_path / 'halton-4' / f'deep/a_{k}.png', results[k])
        images.write_png(tmp_path / 'halton-4' / 'AP' / f'condition_{k + 1}' / 'deep/a.png', priors[k])
        with_figures.append({'id': 'deep/a', 'result': k, 'psnr': 20 + k, 'mae': 0.1 * k, 'ssim': 0.5, 'l1': 3,
                             'l1_hole': 9})
    with open(tmp_path / 'halton-4' / 'metrics.csv', 'w', newline='') as stream:
        table = csv.DictWriter(stream, list(with_figures[0]))
        table.writeheader()
        table.writerows(with_figures)

    row, = benchmark.scored(tmp_path, 'halton-4', 3, {'failed': scene, 'deep/a': scene})

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
    mean, error = benchmark.paired(rows, reference, 'psnr')
    assert mean == pytest.approx(1.5) and error == pytest.approx(np.std([1, 0.5, 3], ddof=1) / math.sqrt(3))
    assert benchmark.paired(rows[:1], reference, 'psnr')[0] == 1.0
    assert all(math.isnan(x) for x in benchmark.paired(rows[4:], reference, 'psnr'))


def test_tables_have_decimals_as_told_and_dashes_for_the_unknown():
    table = benchmark.markdown([{'a': 'x', 'b': 1.23456}, {'a': 3, 'b': math.nan}], (('A', 'a', 0), ('B', 'b', 2)))
    assert table == '| A | B |\n|---|---|\n| x | 1.23 |\n| 3 | – |'


def test_the_data_pipelines_run_with_the_trainings_defaults(tmp_path, capsys):
    """No figure is looked at: only that both deliver, as the command stands in the readme."""
    from tests.benchmarks import benchmark_training
    (tmp_path / 'photos').mkdir()
    for i in range(3):
        images.write_png(tmp_path / 'photos' / f'{i}.png', photograph(i))
    assert benchmark_training.main(['data', '--input', str(tmp_path / 'photos'), '--pictures', '3', '--workers', '0',
                                    '--save_place', str(tmp_path / 'save')]) == 0
    said = capsys.readouterr().out
    assert said.count('| stage 1: decode') == said.count('| stage 2: decode') == 1
