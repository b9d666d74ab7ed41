"""Sheets for a blind judgement: nothing on them tells the sides, the key does, and answers are counted by it."""
from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from ict.data import encode, images
from ict.errors import UserError
from tests.benchmarks import side_by_side
from tests.conftest import photograph

S, GAP, HEAD = 32, 6, 22
LEVELS = {'first': 10, 'second': 200}  # what each evaluation has painted into every hole


@pytest.fixture
def evaluations(tmp_path) -> dict[str, Path]:
    for name, level in LEVELS.items():
        for i in range(9):
            original = photograph(i, S, S).clip(20, 190)
            result = original.copy()
            result[8:16] = level
            for folder, picture in (('originals', original), ('results', result)):
                encode.write(tmp_path / name / folder / f'deep/{i}_0.png', picture)
    return {name: tmp_path / name for name in LEVELS}


def sheets(evaluations: dict[str, Path], *more: str) -> Path:
    output_dir = evaluations['first'].parent / 'sheets'
    assert side_by_side.main(['--first', str(evaluations['first']), '--second', str(evaluations['second']),
                              '--save_place', str(output_dir), *more]) == 0
    return output_dir


def key_of(output_dir: Path) -> list[dict[str, str]]:
    with open(output_dir / 'key.csv', newline='') as stream:
        return list(csv.DictReader(stream))


def test_each_sheet_shows_original_mask_and_both_completions_as_the_key_says(evaluations):
    output_dir = sheets(evaluations, '--pictures', '6')
    key = key_of(output_dir)
    assert sorted(path.name for path in output_dir.iterdir()) == [*(f'0{i}.png' for i in range(1, 7)), 'key.csv']
    assert len({row['picture'] for row in key}) == 6
    assert sum(row['left'] == str(evaluations['first']) for row in key) == 3  # half of the time
    for row in key:
        sheet = images.load_rgb(output_dir / f'{int(row["sheet"]):02d}.png')
        original, masked, left, right = (sheet[HEAD:HEAD + S, GAP + i * (S + GAP):][:, :S] for i in range(4))
        np.testing.assert_array_equal(original, images.load_rgb(evaluations['first'] / 'originals' / row['picture']))
        assert (masked[8:16] == 255).all() and (masked[:8] == original[:8]).all()
        for side, shown in (('left', left), ('right', right)):
            assert {row[side]} == {str(evaluations[name]) for name, level in LEVELS.items()
                                   if (shown[8:16] == level).all()}


def test_sides_are_drawn_anew_for_each_seed_and_the_same_for_one(evaluations):
    keys = []
    for seed in '001':
        keys.append(key_of(output_dir := sheets(evaluations, '--seed', seed)))
        with pytest.raises(UserError, match=r'key\.csv: is there already'):  # the sheets may have been judged
            sheets(evaluations)
        (output_dir / 'key.csv').unlink()
    assert keys[0] == keys[1] != keys[2]


def test_answers_are_counted_by_the_key(evaluations, capsys):
    output_dir = sheets(evaluations)
    sides = {str(evaluations['first']): 'L', str(evaluations['second']): 'R'}
    answers = ''.join(sides[row['left']] for row in key_of(output_dir))  # the first one, wherever it is
    capsys.readouterr()
    assert side_by_side.main(['--save_place', str(output_dir), '--answers', answers[:-1] + '=']) == 0
    assert capsys.readouterr().out.splitlines() == [
        f'8 of 9: {evaluations["first"]}', f'0 of 9: {evaluations["second"]}', '1 of 9: neither']
    for wrong in ('L', 'X' * 9):
        with pytest.raises(UserError, match='--answers'):
            side_by_side.main(['--save_place', str(output_dir), '--answers', wrong])


def test_evaluations_of_other_pictures_are_refused(evaluations, tmp_path):
    encode.write(evaluations['second'] / 'originals' / 'deep/3_0.png', photograph(99, S, S))
    with pytest.raises(UserError, match=r'3_0\.png was made of another original'):
        sheets(evaluations)
    with pytest.raises(UserError, match='no picture in common'):
        side_by_side.main(['--first', str(evaluations['first']), '--second', str(tmp_path), '--save_place',
                           str(tmp_path / 'sheets')])
