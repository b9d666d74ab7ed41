"""ict.evaluate against NumPy, on result files made by hand: no network runs."""
from __future__ import annotations

import csv
import importlib.util
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
from skimage.metrics import structural_similarity

from ict import command, evaluate, files
from ict.data import encode
from ict.data.images import load_rgb
from ict.errors import UserError
from ict.runs import perceptual

ROOT = Path(__file__).resolve().parents[2]
S = 40
HOLE_ROWS = {'a': 6, 'deep/b': 12, 'c': 20}  # 15, 30 and 50 % of the picture
NAMES = ('psnr', 'mae', 'ssim', 'l1', 'l1_hole')


def random_picture(seed: int, height: int = S, width: int = S) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def numpy_metrics(result: np.ndarray, original: np.ndarray, hole: np.ndarray) -> dict[str, float]:
    difference = np.abs(result.astype(float) - original)
    return {'psnr': 10 * math.log10(255 ** 2 / (difference ** 2).mean()), 'mae': difference.sum() / original.sum(),
            'ssim': structural_similarity(result.astype(np.uint8), original, win_size=7, channel_axis=-1),
            'l1': difference.mean(), 'l1_hole': difference[hole].mean()}


def by_opencv(original: np.ndarray, hole: np.ndarray, method: int) -> np.ndarray:
    return cv2.inpaint(np.where(hole[..., None], np.uint8(0), original), hole.astype(np.uint8) * 255, 3, method)


def stage_2_metrics(seed: int) -> dict[str, float]:
    """What no file could give, so a test sees where a value is from."""
    return dict(zip(NAMES, np.random.default_rng(seed).uniform(1, 30, 5).tolist(), strict=True))


class FakeRun:
    """Takes the place of run.py: writes the files, metrics.csv and a manifest of all pictures but ``failing``."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.failing: set[str] = set()
        self.status = 0

    def __call__(self, script: Path, argv: list[str]) -> int:
        assert script == ROOT / 'run.py'
        self.commands.append(argv)
        output_dir = Path(argv[argv.index('--save_place') + 1])
        count = int(argv[argv.index('--sample_num') + 1]) if '--sample_num' in argv else 1
        rows = []
        for picture in HOLE_ROWS:
            for k in range(count):
                if picture not in self.failing:
                    seed = fake_seed(output_dir.name, picture, k)
                    encode.write(output_dir / f'{picture}_{k}.png', random_picture(seed))
                    rows.append({'id': picture, 'result': k, 'hole': 0.1, **stage_2_metrics(seed)})
        if rows:
            with open(output_dir / 'metrics.csv', 'w', newline='') as stream:
                table = csv.DictWriter(stream, list(rows[0]))
                table.writeheader()
                table.writerows(rows)
            files.write_json(output_dir / 'results.json', {'settings': {}, 'pictures': {}})
        return self.status


def fake_seed(folder: str, picture: str, k: int) -> int:
    return 100 * HOLE_ROWS[picture] + 10 * k + (folder == 'deterministic')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """pics and masks at the model's size, where the geometry changes nothing; run.py is fake."""
    for i, (name, rows) in enumerate(HOLE_ROWS.items()):
        mask = np.zeros((S, S), np.uint8)
        mask[:rows] = 255
        encode.write(tmp_path / 'pics' / f'{name}.png', random_picture(i))
        encode.write(tmp_path / 'masks' / f'{name}.png', mask)
    fake = FakeRun()
    monkeypatch.setattr(evaluate, 'call', fake)
    return tmp_path, fake


def argv_of(tmp_path: Path, *more: str) -> list[str]:
    return ['--input', str(tmp_path / 'pics'), '--mask', str(tmp_path / 'masks'), '--save_place',
            str(tmp_path / 'out'), '--sample_num', '4', *more]


def rows_of(tmp_path: Path) -> dict[tuple[str, str], dict[str, str]]:
    with open(tmp_path / 'out' / 'evaluation.csv', newline='') as stream:
        return {(row['id'], row['method']): row for row in csv.DictReader(stream)}


def names_in(output_dir: Path) -> list[str]:
    return sorted(path.relative_to(output_dir).as_posix() for path in output_dir.rglob('*') if path.is_file())


def test_rows_of_an_evaluation_are_those_computed_by_hand(folder, capsys):
    tmp_path, _ = folder
    assert evaluate.main(argv_of(tmp_path)) == 0
    rows = rows_of(tmp_path)
    assert len(rows) == 3 * 6
    for i, (picture, hole_rows) in enumerate(HOLE_ROWS.items()):
        original, hole = random_picture(i), np.zeros((S, S), bool)
        hole[:hole_rows] = True
        seeds = [fake_seed('samples', picture, k) for k in range(4)]
        sample_metrics = [stage_2_metrics(seed) for seed in seeds]
        by_hand = {
            'single sample': {key: np.mean([one[key] for one in sample_metrics]) for key in NAMES},
            'best of 4 by PSNR': sample_metrics[int(np.argmax([one['psnr'] for one in sample_metrics]))],
            'deterministic': stage_2_metrics(fake_seed('deterministic', picture, 0)),
            'mean of 4 samples': numpy_metrics(
                np.rint(np.mean([random_picture(seed) for seed in seeds], axis=0)), original, hole),
            'OpenCV, Telea': numpy_metrics(by_opencv(original, hole, cv2.INPAINT_TELEA), original, hole),
            'OpenCV, Navier-Stokes': numpy_metrics(by_opencv(original, hole, cv2.INPAINT_NS), original, hole)}
        for method, expected in by_hand.items():
            row = rows.pop((picture, method))
            assert float(row['hole']) == hole_rows / S
            assert {key: float(row[key]) for key in expected} == pytest.approx(expected), (picture, method)
    assert not rows
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith('|')]
    assert [line.split('|')[1].strip() for line in table[2::6]] == ['10-20 %', '20-40 %', '40-60 %', 'all']
    assert '\n'.join(table) in (tmp_path / 'out' / 'evaluation.md').read_text(encoding='utf-8')


class FakeFeatures:
    """Takes the place of an installed network: its only map is the picture itself."""

    network = perceptual.NETWORKS['lite2']

    def __call__(self, picture: np.ndarray) -> list[np.ndarray]:
        return [picture.transpose(2, 0, 1).astype(np.float32)]


def test_perceptual_distances_are_those_of_the_files_that_are_scored(folder, monkeypatch):
    tmp_path, _ = folder
    monkeypatch.setattr(perceptual, 'load', {'lite2': FakeFeatures()}.__getitem__)
    assert evaluate.main(argv_of(tmp_path, '--perceptual')) == 0
    rows, output_dir = rows_of(tmp_path), tmp_path / 'out'

    def distance(picture: str, *paths: str) -> float:
        maps = [FakeFeatures()(load_rgb(output_dir / path)) for path in (f'originals/{picture}_0.png', *paths)]
        return float(np.mean([perceptual.distance(found, maps[0]) for found in maps[1:]]))

    for picture in HOLE_ROWS:
        psnr = [stage_2_metrics(fake_seed('samples', picture, k))['psnr'] for k in range(4)]
        for method, paths in {
                'single sample': [f'results/{picture}_{k}.png' for k in range(4)],
                'best of 4 by PSNR': [f'results/{picture}_{np.argmax(psnr)}.png'],
                'deterministic': [f'deterministic/{picture}_0.png'], 'mean of 4 samples': [f'mean/{picture}_0.png'],
                'OpenCV, Telea': [f'telea/{picture}_0.png'],
                'OpenCV, Navier-Stokes': [f'navier_stokes/{picture}_0.png']}.items():
            found = float(rows[picture, method]['perceptual'])
            assert found == pytest.approx(distance(picture, *paths), rel=1e-6), (picture, method)
    text = (output_dir / 'evaluation.md').read_text(encoding='utf-8')
    assert 'EfficientNet-Lite2' in text and '| perceptual |' in text


def test_a_missing_network_is_an_error_before_anything_runs(folder, monkeypatch):
    tmp_path, fake = folder
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match='--perceptual lite0'):
        evaluate.main(argv_of(tmp_path, '--perceptual', 'lite0'))
    assert not fake.commands and not (tmp_path / 'out').exists()


def test_a_result_that_equals_its_original_does_not_make_the_mean_infinite(folder, capsys):
    tmp_path, fake = folder

    def with_identical(script: Path, argv: list[str]) -> int:
        status = fake(script, argv)
        path = Path(argv[argv.index('--save_place') + 1]) / 'metrics.csv'
        rows = list(csv.DictReader(path.open()))
        rows[0]['psnr'] = 'inf'
        with open(path, 'w', newline='') as stream:
            table = csv.DictWriter(stream, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
        return status

    evaluate.call = with_identical  # the fixture's monkeypatch puts it back
    assert evaluate.main(argv_of(tmp_path)) == 0
    said = capsys.readouterr().out
    assert 'equal their originals: 1 of best of 4 by PSNR, 1 of deterministic.' in said
    assert '| all | 3 | deterministic | inf' not in said and '10-20 % | 1 | deterministic | inf' in said


def test_originals_and_results_have_the_same_names_and_sizes(folder):
    tmp_path, _ = folder
    evaluate.main(argv_of(tmp_path))
    output_dir = tmp_path / 'out'
    expected = sorted(f'{picture}_{k}.png' for picture in HOLE_ROWS for k in range(4))
    assert names_in(output_dir / 'originals') == names_in(output_dir / 'results') == expected
    for i, picture in enumerate(HOLE_ROWS):
        for k in range(4):
            np.testing.assert_array_equal(load_rgb(output_dir / 'originals' / f'{picture}_{k}.png'), random_picture(i))
            np.testing.assert_array_equal(load_rgb(output_dir / 'results' / f'{picture}_{k}.png'),
                                          random_picture(fake_seed('samples', picture, k)))
    for name, method in (('telea', cv2.INPAINT_TELEA), ('navier_stokes', cv2.INPAINT_NS)):
        assert names_in(output_dir / name) == sorted(f'{picture}_0.png' for picture in HOLE_ROWS)
        hole = np.zeros((S, S), bool)
        hole[:6] = True
        painted = by_opencv(random_picture(0), hole, method)
        np.testing.assert_array_equal(load_rgb(output_dir / name / 'a_0.png'), painted)
    assert names_in(output_dir / 'mean') == names_in(output_dir / 'telea')


def test_sheet_shows_best_median_worst_with_all_columns(folder):
    tmp_path, _ = folder
    evaluate.main(argv_of(tmp_path))
    ranked = sorted(HOLE_ROWS, key=lambda p: -sum(stage_2_metrics(fake_seed('samples', p, k))['psnr']
                                                  for k in range(4)))
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
    for argv, folder_name in ((samples, 'samples'), (deterministic, 'deterministic')):
        options = dict(itertools.pairwise(argv))
        assert options['--save_place'] == str(tmp_path / 'out' / folder_name)
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
    for name in ('originals', 'results', 'mean', 'telea', 'navier_stokes'):  # an outside scorer must not see it
        assert not [file for file in names_in(tmp_path / 'out' / name) if file.startswith('a_')]
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
    encode.write(tmp_path / 'out' / 'results' / 'holiday.png', random_picture(0))
    with pytest.raises(UserError, match=r'holiday\.png'):
        evaluate.main(argv_of(tmp_path))
    assert not fake.commands
    assert names_in(tmp_path / 'out') == ['results/holiday.png']


@pytest.mark.parametrize('name', ['results/a_0.png', 'sheet.png', 'evaluation.csv'])
def test_files_that_no_evaluation_made_are_not_replaced(folder, name):
    tmp_path, fake = folder
    path = tmp_path / 'out' / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b'mine')
    with pytest.raises(UserError, match=f'{name}: is there already'):
        evaluate.main(argv_of(tmp_path))
    assert not fake.commands and path.read_bytes() == b'mine'


def test_inputs_are_not_written_among_and_not_called_foreign(folder):
    tmp_path, fake = folder
    (tmp_path / 'pics').rename(tmp_path / 'originals')
    argv = ['--input', str(tmp_path / 'originals'), '--mask', str(tmp_path / 'masks'), '--save_place', str(tmp_path)]
    with pytest.raises(UserError, match=r'--input: .*originals.* lies where scored pictures are written'):
        evaluate.main(argv)
    assert not fake.commands


@pytest.mark.parametrize(('more', 'message'), [
    (['--mask_mode', 'published'], '--mask_mode published'),
    (['--geometry', 'published'], '--geometry published'),
    (['--deterministic=True'], '--deterministic'),
    (['--keep_size'], '--keep_size'),
    (['--geometry', 'hole', '--perceptual'], '--perceptual'),
    (['--mask', 'alpha'], '--mask alpha'),
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


def test_a_result_of_another_size_fails_its_picture(folder):
    tmp_path, fake = folder

    def other_size(script: Path, argv: list[str]) -> int:
        status = fake(script, argv)
        encode.write(tmp_path / 'out' / 'samples' / 'c_2.png', random_picture(0, S, S + 1))
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
