"""ict.evaluate against NumPy, on result files made by hand: no network runs."""
from __future__ import annotations

import csv
import itertools
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ict import command, evaluate
from ict.data import geometry, images
from ict.data.images import load_rgb
from ict.errors import UserError
from ict.runs import inputs

ROOT = Path(__file__).resolve().parents[2]
S = 40
HOLE_ROWS = {'a': 6, 'deep/b': 12, 'c': 20}  # 15, 30 and 50 % of the picture
FIGURE_NAMES = ('psnr', 'mae', 'ssim', 'l1', 'l1_hole')


def random_picture(seed: int, height: int = S, width: int = S) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def numpy_figures(result: np.ndarray, original: np.ndarray, hole: np.ndarray) -> dict[str, float]:
    difference = np.abs(result.astype(float) - original)
    return {'psnr': 10 * math.log10(255 ** 2 / (difference ** 2).mean()), 'mae': difference.sum() / original.sum(),
            'l1': difference.mean(), 'l1_hole': difference[hole].mean()}


def by_opencv(original: np.ndarray, hole: np.ndarray, method: int) -> np.ndarray:
    return cv2.inpaint(np.where(hole[..., None], np.uint8(0), original), hole.astype(np.uint8) * 255, 3, method)


def stage_2_figures(seed: int) -> dict[str, float]:
    """What no file could give, so a test sees where a figure is from."""
    return dict(zip(FIGURE_NAMES, np.random.default_rng(seed).uniform(1, 30, 5).tolist(), strict=True))


def view_of(original: np.ndarray, hole: np.ndarray) -> geometry.ScoredView:
    return geometry.ScoredView(np.where(hole[..., None], np.uint8(0), original), hole, original)


@pytest.fixture
def top_hole() -> np.ndarray:
    hole = np.zeros((S, S), bool)
    hole[:12] = True
    return hole


@pytest.mark.parametrize('geometry', ['crop', 'resize', 'hole'])
@pytest.mark.parametrize('mask_shape', [(90, 130), (64, 64)])
def test_scored_view_is_what_stage_2_scores_against(tmp_path, monkeypatch, geometry, mask_shape):
    monkeypatch.setattr(sys, 'path', [*sys.path])  # the script puts the root in front
    from Guided_Upsample import infer
    grey = np.zeros(mask_shape, np.uint8)
    grey[20:33, 25:60] = 255
    images.write_png(tmp_path / 'p' / 'x.png', random_picture(0, 90, 130))
    images.write_png(tmp_path / 'm' / 'x.png', grey)
    work = inputs.find(tmp_path / 'p', '--input', tmp_path / 'm', '--mask', 0, tmp_path / 'none')
    view = inputs.View(geometry=geometry)
    seen = infer.Seen(work, 0, view, 64, own_size=False)

    picture, mask = work.read(0, view)
    image, hole, original = evaluate.scored_view(picture.rgb, mask, geometry, 64)

    assert 0 < hole.mean() < 1
    np.testing.assert_array_equal(image, seen.image)
    np.testing.assert_array_equal(hole, seen.hole)
    np.testing.assert_array_equal(original, seen.original)


@pytest.mark.parametrize('method', [cv2.INPAINT_TELEA, cv2.INPAINT_NS])
def test_opencv_is_cv2_inpaint_of_radius_3_and_no_hole_pixel_reaches_it(top_hole, method):
    image = random_picture(1)
    other = np.where(top_hole[..., None], random_picture(2), image)
    painted = evaluate.opencv(image, top_hole, method)
    np.testing.assert_array_equal(painted, by_opencv(image, top_hole, method))
    np.testing.assert_array_equal(painted, evaluate.opencv(other, top_hole, method))
    np.testing.assert_array_equal(painted[~top_hole], image[~top_hole])
    assert not evaluate.opencv(image, np.ones_like(top_hole), method).any()  # nothing known: not the original


def test_mean_picture_rounds_to_the_nearest_level():
    samples = np.array([[10, 0, 255], [11, 0, 255], [11, 1, 254]], np.uint8).reshape(3, 1, 1, 3)
    assert evaluate.mean_picture(samples).tolist() == [[[11, 0, 255]]]


def test_diversity_is_the_mean_over_all_pairs_and_its_l1_is_of_the_hole_alone(top_hole):
    from skimage.metrics import structural_similarity
    samples = np.stack([random_picture(seed) for seed in range(3)])
    found = evaluate.diversity(samples, top_hole)
    pairs = list(itertools.combinations(samples.astype(int), 2))
    assert found['diversity'] == pytest.approx(np.mean([np.abs(a - b)[top_hole].mean() for a, b in pairs]))
    assert found['diversity_ssim'] == pytest.approx(np.mean(
        [1 - structural_similarity(a, b, win_size=7, data_range=255, channel_axis=-1) for a, b in pairs]))
    assert all(math.isnan(value) for value in evaluate.diversity(samples[:1], top_hole).values())


def test_single_best_and_deterministic_rows_are_stage_2s_figures(top_hole):
    samples = np.stack([random_picture(seed) for seed in range(3)])
    figures = [{'psnr': 20.0, 'mae': 0.3, 'ssim': 0.9, 'l1': 1.0, 'l1_hole': 4.0},
               {'psnr': 23.0, 'mae': 0.2, 'ssim': 0.5, 'l1': 2.0, 'l1_hole': 9.0},
               {'psnr': 20.0, 'mae': 0.1, 'ssim': 0.7, 'l1': 6.0, 'l1_hole': 2.0}]
    rows = {row['method']: row for row in evaluate.score(
        view_of(random_picture(9), top_hole), samples, figures, stage_2_figures(5), {})}
    assert list(rows) == ['single sample', 'best of 3 by PSNR', 'deterministic']
    assert {key: rows['single sample'][key] for key in FIGURE_NAMES} == pytest.approx(
        {'psnr': 21.0, 'mae': 0.2, 'ssim': 0.7, 'l1': 3.0, 'l1_hole': 5.0})
    assert {key: rows['best of 3 by PSNR'][key] for key in FIGURE_NAMES} == figures[1]
    assert {key: rows['deterministic'][key] for key in FIGURE_NAMES} == stage_2_figures(5)
    assert rows['single sample']['diversity'] == evaluate.diversity(samples, top_hole)['diversity']
    assert math.isnan(rows['deterministic']['diversity'])
    assert {row['hole'] for row in rows.values()} == {12 / S}


def test_other_pictures_are_scored_against_the_original(top_hole):
    from skimage.metrics import structural_similarity
    original, picture = random_picture(9), random_picture(8)
    row = evaluate.score(view_of(original, top_hole), picture[None], [stage_2_figures(0)], stage_2_figures(1),
                         {'another': picture})[-1]
    expected = numpy_figures(picture, original, top_hole)
    assert {key: row[key] for key in expected} == pytest.approx(expected)
    assert row['ssim'] == pytest.approx(structural_similarity(picture, original, win_size=7, channel_axis=-1))


def test_table_has_the_means_of_each_bin_and_of_all():
    rows = [{'id': str(i), 'method': method, 'hole': hole, 'psnr': psnr + bonus, 'mae': 0.5, 'ssim': 0.25,
             'l1': 1.5, 'l1_hole': 3.0, 'diversity': math.nan if bonus else 2.0, 'diversity_ssim': math.nan}
            for i, (hole, psnr) in enumerate([(0.15, 20.0), (0.2, 30.0), (0.39, 31.0), (0.4, 10.0)])
            for method, bonus in (('one', 0), ('two', 5))]
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in evaluate.table(rows).splitlines()]
    assert cells[0][:4] == ['hole', 'pictures', 'method', 'PSNR']
    assert [row[:4] for row in cells[2:]] == [
        ['10-20 %', '1', 'one', '20.00'], ['10-20 %', '1', 'two', '25.00'],
        ['20-40 %', '2', 'one', '30.50'], ['20-40 %', '2', 'two', '35.50'],
        ['40-60 %', '1', 'one', '10.00'], ['40-60 %', '1', 'two', '15.00'],
        ['all', '4', 'one', '22.75'], ['all', '4', 'two', '27.75']]
    assert cells[2][4:] == ['0.2500', '0.50000', '3.00', '2.00', '–']
    assert cells[3][-2:] == ['–', '–']
    assert len({len(row) for row in cells}) == 1


def test_best_median_and_worst_are_ranked_by_the_first_sample():
    psnr = {'a': 21.0, 'b': 25.0, 'c': 19.0, 'd': 23.0, 'e': 30.0}
    sampled = {(picture, k): {'psnr': value if k == 0 else -value} for picture, value in psnr.items() for k in (0, 1)}
    assert evaluate.best_median_worst(list(psnr), sampled) == ['e', 'd', 'c']
    assert evaluate.best_median_worst(['a', 'c'], sampled) == ['a', 'c']
    assert evaluate.best_median_worst(['a'], sampled) == ['a']


class FakeRun:
    """Takes the place of run.py: writes the result files and metrics.csv of all pictures but ``failing``."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.failing: set[str] = set()
        self.status = 0

    def __call__(self, script: Path, argv: list[str]) -> int:
        assert script == ROOT / 'run.py'
        self.commands.append(argv)
        place = Path(argv[argv.index('--save_place') + 1])
        count = int(argv[argv.index('--sample_num') + 1]) if '--sample_num' in argv else 1
        rows = []
        for picture in HOLE_ROWS:
            for k in range(count):
                if picture not in self.failing:
                    seed = fake_seed(place.name, picture, k)
                    images.write_png(place / f'{picture}_{k}.png', random_picture(seed))
                    rows.append({'id': picture, 'result': k, 'hole': 0.1, **stage_2_figures(seed)})
        if rows:
            with open(place / 'metrics.csv', 'w', newline='') as stream:
                table = csv.DictWriter(stream, list(rows[0]))
                table.writeheader()
                table.writerows(rows)
        return self.status


def fake_seed(folder: str, picture: str, k: int) -> int:
    return 100 * HOLE_ROWS[picture] + 10 * k + (folder == 'deterministic')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """pics and masks at the model's size, where the geometry changes nothing; run.py is fake."""
    for i, (name, rows) in enumerate(HOLE_ROWS.items()):
        mask = np.zeros((S, S), np.uint8)
        mask[:rows] = 255
        images.write_png(tmp_path / 'pics' / f'{name}.png', random_picture(i))
        images.write_png(tmp_path / 'masks' / f'{name}.png', mask)
    fake = FakeRun()
    monkeypatch.setattr(evaluate, 'call', fake)
    return tmp_path, fake


def argv_of(tmp_path: Path, *more: str) -> list[str]:
    return ['--input', str(tmp_path / 'pics'), '--mask', str(tmp_path / 'masks'), '--save_place',
            str(tmp_path / 'out'), '--sample_num', '4', *more]


def rows_of(tmp_path: Path) -> dict[tuple[str, str], dict[str, str]]:
    with open(tmp_path / 'out' / 'evaluation.csv', newline='') as stream:
        return {(row['id'], row['method']): row for row in csv.DictReader(stream)}


def names_in(place: Path) -> list[str]:
    return sorted(path.relative_to(place).as_posix() for path in place.rglob('*') if path.is_file())


def test_rows_of_an_evaluation_are_those_computed_by_hand(folder, capsys):
    tmp_path, _ = folder
    assert evaluate.main(argv_of(tmp_path)) == 0
    rows = rows_of(tmp_path)
    assert len(rows) == 3 * 6
    for i, (picture, hole_rows) in enumerate(HOLE_ROWS.items()):
        original, hole = random_picture(i), np.zeros((S, S), bool)
        hole[:hole_rows] = True
        seeds = [fake_seed('samples', picture, k) for k in range(4)]
        figures = [stage_2_figures(seed) for seed in seeds]
        by_hand = {
            'single sample': {key: np.mean([one[key] for one in figures]) for key in FIGURE_NAMES},
            'best of 4 by PSNR': figures[int(np.argmax([one['psnr'] for one in figures]))],
            'deterministic': stage_2_figures(fake_seed('deterministic', picture, 0)),
            'mean of 4 samples': numpy_figures(
                np.rint(np.mean([random_picture(seed) for seed in seeds], axis=0)), original, hole),
            'OpenCV, Telea': numpy_figures(by_opencv(original, hole, cv2.INPAINT_TELEA), original, hole),
            'OpenCV, Navier-Stokes': numpy_figures(by_opencv(original, hole, cv2.INPAINT_NS), original, hole)}
        for method, expected in by_hand.items():
            row = rows.pop((picture, method))
            assert float(row['hole']) == hole_rows / S
            assert {key: float(row[key]) for key in expected} == pytest.approx(expected), (picture, method)
    assert not rows
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith('|')]
    assert [line.split('|')[1].strip() for line in table[2::6]] == ['10-20 %', '20-40 %', '40-60 %', 'all']
    assert '\n'.join(table) in (tmp_path / 'out' / 'evaluation.md').read_text(encoding='utf-8')


def test_originals_and_results_have_the_same_names_and_sizes(folder):
    tmp_path, _ = folder
    evaluate.main(argv_of(tmp_path))
    place = tmp_path / 'out'
    expected = sorted(f'{picture}_{k}.png' for picture in HOLE_ROWS for k in range(4))
    assert names_in(place / 'originals') == names_in(place / 'results') == expected
    for i, picture in enumerate(HOLE_ROWS):
        for k in range(4):
            np.testing.assert_array_equal(load_rgb(place / 'originals' / f'{picture}_{k}.png'), random_picture(i))
            np.testing.assert_array_equal(load_rgb(place / 'results' / f'{picture}_{k}.png'),
                                          random_picture(fake_seed('samples', picture, k)))
    for name, method in (('telea', cv2.INPAINT_TELEA), ('navier_stokes', cv2.INPAINT_NS)):
        assert names_in(place / name) == sorted(f'{picture}_0.png' for picture in HOLE_ROWS)
        hole = np.zeros((S, S), bool)
        hole[:6] = True
        np.testing.assert_array_equal(load_rgb(place / name / 'a_0.png'), by_opencv(random_picture(0), hole, method))
    assert names_in(place / 'mean') == names_in(place / 'telea')


def test_sheet_shows_best_median_worst_with_all_columns(folder):
    tmp_path, _ = folder
    evaluate.main(argv_of(tmp_path))
    ranked = sorted(HOLE_ROWS, key=lambda p: -stage_2_figures(fake_seed('samples', p, 0))['psnr'])
    sheet, gap, head = load_rgb(tmp_path / 'out' / 'sheet.png'), 6, 22
    assert sheet.shape == (head + 3 * (S + gap), 9 * (S + gap) + gap, 3)
    for r, picture in enumerate(ranked):
        cells = [sheet[head + r * (S + gap):][:S, gap + i * (S + gap):][:, :S] for i in range(9)]
        original = random_picture(list(HOLE_ROWS).index(picture))
        np.testing.assert_array_equal(cells[0], original)
        assert (cells[1][:HOLE_ROWS[picture]] == 255).all()
        np.testing.assert_array_equal(cells[1][HOLE_ROWS[picture]:], original[HOLE_ROWS[picture]:])
        for k in range(3):
            np.testing.assert_array_equal(cells[4 + k], random_picture(fake_seed('samples', picture, k)))
        np.testing.assert_array_equal(cells[7], load_rgb(tmp_path / 'out' / 'mean' / f'{picture}_0.png'))
        np.testing.assert_array_equal(cells[8], random_picture(fake_seed('deterministic', picture, 0)))


def test_run_py_is_called_for_samples_and_for_the_deterministic_mode(folder):
    tmp_path, fake = folder
    evaluate.main(argv_of(tmp_path, '--sample_steps', '16', '--GELU_2', '--transformer_ckpt', 't.ckpt', '--seed', '3',
                          '--geometry', 'resize', '--invert_mask'))
    samples, deterministic = fake.commands
    for argv, place in ((samples, 'samples'), (deterministic, 'deterministic')):
        options = dict(itertools.pairwise(argv))
        assert options['--save_place'] == str(tmp_path / 'out' / place)
        assert options['--input_image'] == str(tmp_path / 'pics')
        assert options['--input_mask'] == str(tmp_path / 'masks')
        assert options['--transformer_ckpt'] == 't.ckpt'
        assert options['--sample_steps'] == '16'
        assert '--GELU_2' in argv
        assert options['--seed'] == '3'
        assert options['--geometry'] == 'resize'
        assert options['--invert_mask'] == 'True'
        assert '--upsample_ckpt' not in argv
        assert '--mask_mode' not in argv
    assert dict(itertools.pairwise(samples))['--sample_num'] == '4'
    assert '--deterministic' not in samples
    assert dict(itertools.pairwise(deterministic))['--deterministic'] == 'True'
    assert '--sample_num' not in deterministic


def test_a_second_run_gives_the_same_files(folder):
    tmp_path, _ = folder
    evaluate.main(argv_of(tmp_path))
    before = {name: (tmp_path / 'out' / name).read_bytes() for name in names_in(tmp_path / 'out')}
    (tmp_path / 'out' / 'results' / '.part-left.png').write_bytes(b'half')
    evaluate.main(argv_of(tmp_path))
    assert {name: (tmp_path / 'out' / name).read_bytes() for name in names_in(tmp_path / 'out')} == before


def test_a_failed_picture_is_listed_and_the_rest_scored_with_status_1(folder, capsys):
    tmp_path, fake = folder
    evaluate.main(argv_of(tmp_path))
    fake.failing, fake.status = {'a'}, command.SOME_FAILED
    assert evaluate.main(argv_of(tmp_path)) == 1
    assert {picture for picture, _ in rows_of(tmp_path)} == {'deep/b', 'c'}
    assert '1 of 3 pictures failed' in capsys.readouterr().err
    for place in ('originals', 'results', 'mean', 'telea', 'navier_stokes'):  # an outside scorer must not see it
        assert not [name for name in names_in(tmp_path / 'out' / place) if name.startswith('a_')]
    assert len(names_in(tmp_path / 'out' / 'results')) == 2 * 4


def test_failures_that_run_py_alone_saw_are_status_1_too(folder):
    tmp_path, fake = folder
    fake.status = command.SOME_FAILED
    assert evaluate.main(argv_of(tmp_path)) == 1
    assert {picture for picture, _ in rows_of(tmp_path)} == set(HOLE_ROWS)


def test_status_of_run_py_ends_the_evaluation(folder):
    tmp_path, fake = folder
    fake.status = 2
    assert evaluate.main(argv_of(tmp_path)) == 2
    assert len(fake.commands) == 1
    assert not (tmp_path / 'out' / 'evaluation.csv').exists()


def test_nothing_scored_is_status_2_without_tables(folder):
    tmp_path, _ = folder
    for picture in HOLE_ROWS:  # the masks fail where run.py's own reading did not
        (tmp_path / 'masks' / f'{picture}.png').write_bytes(b'no picture')
    assert evaluate.main(argv_of(tmp_path)) == 2
    assert not (tmp_path / 'out' / 'evaluation.csv').exists()


def test_foreign_pictures_in_the_scored_folders_are_an_error_before_anything_runs(folder):
    tmp_path, fake = folder
    images.write_png(tmp_path / 'out' / 'results' / 'holiday.png', random_picture(0))
    with pytest.raises(UserError, match=r'holiday\.png'):
        evaluate.main(argv_of(tmp_path))
    assert not fake.commands
    assert names_in(tmp_path / 'out') == ['results/holiday.png']


@pytest.mark.parametrize(('more', 'message'), [
    (['--mask_mode', 'published'], '--mask_mode published'),
    (['--geometry', 'published'], '--geometry published'),
    (['--deterministic=True'], '--deterministic'),
    (['--keep_size'], '--keep_size'),
    (['--sample_num', '0'], '--sample_num 0'),
])
def test_options_that_cannot_be_scored_are_errors(folder, more, message):
    tmp_path, fake = folder
    with pytest.raises(UserError, match=message):
        evaluate.main(argv_of(tmp_path, *more))
    assert not fake.commands
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('name', ['pics', 'masks'])
def test_save_place_in_an_input_folder_is_an_error_that_makes_nothing(folder, name):
    tmp_path, fake = folder
    with pytest.raises(UserError, match='lies in --'):
        evaluate.main([*argv_of(tmp_path), '--save_place', str(tmp_path / name / 'out')])
    assert not fake.commands
    assert not (tmp_path / name / 'out').exists()


@pytest.mark.parametrize('content', ['id,result\na,0\n', 'id,result,psnr,mae,ssim,l1_hole\na,0,x,1,1,1\n', None])
def test_a_damaged_metrics_file_is_a_user_error(tmp_path, content):
    if content is not None:
        (tmp_path / 'metrics.csv').write_text(content)
    with pytest.raises(UserError, match=r'metrics\.csv'):
        evaluate.read_figures(tmp_path / 'metrics.csv')


def test_a_result_of_another_size_fails_its_picture(folder):
    tmp_path, fake = folder

    def other_size(script: Path, argv: list[str]) -> int:
        status = fake(script, argv)
        images.write_png(tmp_path / 'out' / 'samples' / 'c_2.png', random_picture(0, S, S + 1))
        return status

    evaluate.call = other_size  # the fixture's monkeypatch puts it back
    assert evaluate.main(argv_of(tmp_path)) == 1
    assert {picture for picture, _ in rows_of(tmp_path)} == {'a', 'deep/b'}


def test_call_gives_the_exit_status_and_passes_sigterm_on(tmp_path, capsys):
    (tmp_path / 'seven.py').write_text('raise SystemExit(7)')
    (tmp_path / 'ends_us.py').write_text('import os, time\nwhile True:\n  os.kill(os.getppid(), 15); time.sleep(0.1)')
    assert command.call(tmp_path / 'seven.py', []) == 7
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        assert command.call(tmp_path / 'ends_us.py', []) == 128 + signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert 'was ended by signal 15; the same command continues' in capsys.readouterr().err


@pytest.mark.parametrize(('more', 'message'), [
    (['--sample_steps', '16', '--schedule', 'halton', '--top_k', '5', '--batch_size', '2'], 'missing.ckpt'),
    (['--sample_stepz', '16'], '--sample_stepz'),
])
def test_run_py_takes_the_options_and_its_errors_are_one_line(folder, more, message):
    tmp_path, _ = folder
    missing = str(tmp_path / 'missing.ckpt')
    done = subprocess.run([sys.executable, '-m', 'ict.evaluate',
                           *argv_of(tmp_path, '--transformer_ckpt', missing, '--upsample_ckpt', missing, *more)],
                          cwd=ROOT, env={**os.environ, 'PYTHONPATH': ''}, capture_output=True, text=True)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1
    assert message in errors[0]
    assert 'Traceback' not in done.stderr


def test_scored_pictures_are_8_bit_rgb(folder):
    tmp_path, _ = folder
    evaluate.main(argv_of(tmp_path))
    for name in ('originals', 'results', 'mean', 'telea', 'navier_stokes'):
        for file in names_in(tmp_path / 'out' / name):
            with Image.open(tmp_path / 'out' / name / file) as opened:
                assert (opened.format, opened.mode, opened.size) == ('PNG', 'RGB', (S, S))


def test_options_that_only_samples_know_are_kept_from_the_deterministic_mode(folder):
    tmp_path, fake = folder
    assert evaluate.main(argv_of(tmp_path, '--resample', '0.25', '--reuse_window=3', '--top_k', '5')) == 0
    samples, deterministic = fake.commands
    assert {'--resample', '0.25', '--reuse_window=3'} <= set(samples)
    assert deterministic[-2:] == ['--top_k', '5'] and not {'--resample', '0.25', '--reuse_window=3'} & {*deterministic}
