"""Results are encoded and written on other threads while the next ones are computed."""
from __future__ import annotations

import itertools
import threading
import time

import pytest

from Guided_Upsample import infer as stage_2
from ict.data import encode
from ict.errors import UserError
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


def test_a_result_is_in_its_file_before_the_next_one_is_computed(tiny, folders, priors, tmp_path, monkeypatch):
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


def test_a_result_that_cannot_be_encoded_fails_alone(tiny, folders, priors, tmp_path, monkeypatch, capsys):
    to_bytes, number = encode.encode, itertools.count()

    def refusing(*args):
        if next(number) == 1:
            raise UserError('--save_format webp: 20000 x 10 pixels are more than 16383 on a side; use png')
        return to_bytes(*args)

    monkeypatch.setattr(encode, 'encode', refusing)
    assert paint(tiny, folders, priors, tmp_path / 'save') == 1
    assert '1 of 3 pictures failed' in capsys.readouterr().err
    done = {name for name in files_of(tmp_path / 'save') if name.endswith('.png')}
    assert len(done) == 2
    monkeypatch.undo()
    assert paint(tiny, folders, priors, tmp_path / 'save') == 0
    assert {'p0_0.png', 'p1_0.png', 'p2_0.png'} <= files_of(tmp_path / 'save').keys()
