"""What the clocks of a run tell, against hand-made seconds; nothing is measured here."""
from __future__ import annotations

import itertools
import math

import pytest

from ict import files
from tests.benchmarks import clock, end_to_end

COMPILING, PASS, DRAWING = 5.0, 0.5, 0.25


def record(pictures: int, passes: int, batch_size: int = 1, stage: str = 'stage_1') -> dict:
    """Of a stage 1 that took exactly so long, as it is read back from JSON."""
    made = clock.Clock()
    made.add(clock.IMPORT, 2.0)
    made.add(clock.LOAD, 1.0)
    for batch in range(pictures // batch_size):
        compiling = COMPILING if batch == 0 else 0.0
        for i in range(passes):
            made.add(clock.PASS, batch_size * PASS + (compiling if i == 0 else 0.0), batch_size)
        made.add(clock.RESULT, batch_size * passes * (PASS + DRAWING) + compiling, batch_size)
    made.add(clock.MAIN, 100.0)
    return {'stage': stage, 'device': 'CPU', 'calls': made.calls, 'n_first': made.n_first, 'peak_mb': 100.0 * pictures}


@pytest.mark.parametrize('batch_size', [1, 2])
def test_seconds_of_a_sample_leave_out_compilation_however_many_processes_made_them(batch_size):
    found = clock.seconds_of([record(6, 4, batch_size), record(4, 4, batch_size)])
    assert found == pytest.approx({'passes': 4, 'pass': PASS, 'result': 4 * (PASS + DRAWING), 'start': 3 + COMPILING,
                                   'peak_mb': 600})


def test_what_clocks_cannot_tell_is_nan():
    one = clock.seconds_of([record(1, 1)])
    assert one['passes'] == 1 and one['peak_mb'] == 100
    assert all(math.isnan(one[key]) for key in ('pass', 'result', 'start'))
    assert all(math.isnan(value) for value in clock.seconds_of([]).values())


def test_timed_functions_give_the_same_and_their_pictures_are_counted():
    made = clock.Clock()
    double = made.timed(lambda batch: [2 * x for x in batch], clock.PASS, len)
    assert double([1, 2, 3]) == [2, 4, 6] and double([4]) == [8]
    assert [pictures for _, pictures in made.calls[clock.PASS]] == [3, 1]
    assert all(seconds > 0 for seconds, _ in made.calls[clock.PASS])


def test_the_breakdown_of_a_run_adds_up():
    rows = {row['part']: row for row in end_to_end.breakdown(230.0, [record(2, 4), record(1, 1, stage='stage_2')])}
    assert rows['first pass, with compilation']['stage_1'] == COMPILING + PASS
    assert rows['further passes']['stage_1'] == 7 * PASS
    assert rows['drawing of tokens, preparing of arrays']['stage_1'] == 8 * DRAWING
    for name in clock.STAGES:
        before = itertools.takewhile(lambda row: row['part'] != 'together', rows.values())
        assert sum(row[name] for row in before) == pytest.approx(rows['together'][name]) == 100
    assert rows['run.py itself: imports, checks, start and end']['stage_1'] == 30 and rows['all']['stage_1'] == 230


def test_a_timed_run_makes_what_run_py_makes_and_notes_every_pass_of_both_stages(tmp_path, tiny, folders):
    """Through the command, as quality.py and end_to_end.py call it."""
    path = tmp_path / 'clock.json'
    for _ in range(2):  # the second time nothing is left to do
        assert clock.timed_run(path, '--transformer_ckpt', tiny['transformer'], '--upsample_ckpt', tiny['generator'],
                               '--input_image', folders['images'], '--input_mask', folders['masks'], '--save_place',
                               folders['save'], '--sample_num', 2, '--sample_steps', 3, '--device_target', 'CPU') == 0
    assert len(list(folders['save'].glob('p?_?.png'))) == 6
    (one,), (two,) = (clock.of_stage(path, stage) for stage in clock.STAGES)
    assert len(files.read_json(path)) == 2
    assert [len(one['calls'][part]) for part in (clock.RESULT, clock.PASS)] == [6, 18]
    assert [len(two['calls'][part]) for part in (clock.RESULT, clock.PASS)] == [6, 6]
    for stage, passes in ((one, 3), (two, 1)):
        assert stage['n_first'][clock.PASS] == passes and stage['n_first'][clock.RESULT] == 1
        assert set(stage['calls']) == {clock.IMPORT, clock.LOAD, clock.PASS, clock.RESULT, clock.MAIN}
