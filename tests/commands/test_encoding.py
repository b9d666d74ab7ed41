"""Results are encoded and written on other threads while the next ones are computed."""
from __future__ import annotations

import errno
import itertools
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from Guided_Upsample import infer as stage_2
from ict import files
from ict.command import run
from ict.data import encode
from ict.runs import scores
from tests.commands.test_commands import paint, sample
from tests.conftest import files_of


@pytest.fixture
def priors(tiny, folders, tmp_path):
    assert sample(tiny, folders, tmp_path / 'AP') == 0
    return tmp_path / 'AP'


def test_the_next_result_is_computed_meanwhile(tiny, folders, priors, tmp_path, monkeypatch):
    assert paint(tiny, folders, priors, tmp_path / 'quick') == 0
    compute, to_bytes = stage_2.PaintingStage.compute, encode.encode
    seen, third = [], threading.Event()

    def computing(self, parts):
        seen.append(parts)
        if len(seen) == 3:
            third.set()
        return compute(self, parts)

    def slowly(*args):
        assert third.wait(60), 'no other result was computed'
        return to_bytes(*args)

    monkeypatch.setattr(stage_2.PaintingStage, 'compute', computing)
    monkeypatch.setattr(encode, 'encode', slowly)
    assert paint(tiny, folders, priors, tmp_path / 'slow') == 0
    assert files_of(tmp_path / 'slow') == files_of(tmp_path / 'quick')


def test_a_result_is_written_without_waiting_for_later_ones(tiny, folders, priors, tmp_path, monkeypatch):
    compute, seen = stage_2.PaintingStage.compute, []

    def computing(self, parts):
        deadline = time.monotonic() + 60
        while seen and not seen[-1].is_file():
            assert time.monotonic() < deadline, f'{seen[-1]} waits for others'
            time.sleep(0.01)
        seen.extend(self.paths(parts[0].task))
        return compute(self, parts)

    monkeypatch.setattr(stage_2.PaintingStage, 'compute', computing)
    assert paint(tiny, folders, priors, tmp_path / 'save') == 0 and len(seen) == 3


def test_results_are_encoded_at_once_and_written_in_order_each_after_its_line(tiny, folders, priors, tmp_path,
                                                                              monkeypatch):
    to_bytes, write, add = encode.encode, files.write_bytes, scores.Scores.add
    number, second, order = itertools.count(), threading.Event(), []

    def encoding(*args):
        if next(number) == 0:
            assert second.wait(60), 'one result is encoded at a time'
        else:
            second.set()
        return to_bytes(*args)

    def writing(path, content):
        order.append(Path(path).name)
        write(path, content)

    def adding(self, key, line):
        order.append(key)
        add(self, key, line)

    monkeypatch.setattr(encode, 'encode', encoding)
    monkeypatch.setattr(files, 'write_bytes', writing)
    monkeypatch.setattr(scores.Scores, 'add', adding)
    assert paint(tiny, folders, priors, tmp_path / 'save') == 0
    assert [name for name in order if isinstance(name, tuple) or name.endswith('.png')] == [
        each for i in range(3) for each in ((f'p{i}', 0), f'p{i}_0.png')]


@pytest.mark.parametrize('slow', [0.0, 0.3])
def test_a_file_that_cannot_be_written_costs_no_other(slow, tiny, folders, tmp_path, monkeypatch, capsys):
    assert sample(tiny, folders, tmp_path / 'AP', '--condition_num', 3) == 0
    write = files.write_bytes

    def refusing(path, content):
        if Path(path).name == 'p0_0.png':
            time.sleep(slow)
            raise PermissionError(errno.EACCES, 'Permission denied')
        write(path, content)

    monkeypatch.setattr(files, 'write_bytes', refusing)
    assert paint(tiny, folders, tmp_path / 'AP', tmp_path / 'save', '--condition_num', 3) == 1
    assert '1 of 3 pictures failed' in capsys.readouterr().err
    wanted = {f'p{i}_{k}.png' for i in range(3) for k in range(3)}
    assert {name for name in files_of(tmp_path / 'save') if name.endswith('.png')} == wanted - {'p0_0.png'}
    monkeypatch.undo()
    assert paint(tiny, folders, tmp_path / 'AP', tmp_path / 'save', '--condition_num', 3) == 0
    assert wanted <= files_of(tmp_path / 'save').keys()


def test_a_full_disk_ends_the_run_before_further_results_are_computed(tiny, folders, priors, tmp_path, monkeypatch,
                                                                      capsys):
    compute, write, seen, full = stage_2.PaintingStage.compute, files.write_bytes, [], threading.Event()

    def computing(self, parts):
        seen.append(parts)
        result = compute(self, parts)
        if len(seen) == 2:
            assert full.wait(60)
            time.sleep(0.2)  # until the other thread has ended
        return result

    def refusing(path, content):
        if Path(path).suffix == '.png':
            full.set()
            raise OSError(errno.ENOSPC, 'No space left on device')
        write(path, content)

    monkeypatch.setattr(stage_2.PaintingStage, 'compute', computing)
    monkeypatch.setattr(files, 'write_bytes', refusing)
    monkeypatch.setattr('sys.argv', ['infer.py'])
    assert run(lambda _: paint(tiny, folders, priors, tmp_path / 'save')) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith('error: nothing more can be written (No space left')
    assert len(seen) < 3 and not list((tmp_path / 'save').glob('*.png'))


def test_a_picture_that_is_too_large_for_the_format_fails_alone(tiny, folders, tmp_path, capsys):
    Image.new('RGB', (16384, 8)).save(folders['images'] / 'p1.png')
    mask = Image.new('L', (16384, 8))
    mask.paste(255, (4000, 2, 9000, 6))
    mask.save(folders['masks'] / 'p1.png')
    shape = '--geometry', 'resize'
    assert sample(tiny, folders, tmp_path / 'AP', *shape) == 0
    assert paint(tiny, folders, tmp_path / 'AP', tmp_path / 'save', *shape, '--keep_size', '--save_format', 'webp') == 1
    assert '--save_format webp: 16384 x 8 pixels are more than 16383 on a side; use png' in capsys.readouterr().err
    assert {name for name in files_of(tmp_path / 'save') if name.endswith('.webp')} == {'p0_0.webp', 'p2_0.webp'}
