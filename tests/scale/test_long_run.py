"""A long training in small: what interrupts days of training in the end changes no byte of its result."""
from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ict import checkpoint
from tests.conftest import DEVICE
from tests.scale.tiny_runs import (  # noqa: F401
    checkpoints,
    data,
    kill,
    log_without_seconds,
    processes_of,
    ranks_and_data_workers,
    resumed_from,
    saved_step,
    start,
    training,
)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(DEVICE != 'CPU', reason='its ranks would share a card')]
STEPS = int(os.environ.get('ICT_TEST_STEPS', '2000'))
KILLS = int(os.environ.get('ICT_TEST_KILLS', '40'))
EVERY = 10  # steps from one save to the next
SECONDS = 900  # that anything here may take


def run_whole(stage: int, data: dict[str, Path], save: Path, kmeans: Path, ranks: int, steps: int,  # noqa: F811
              *more: object) -> None:
    script, argv = training(stage, data, save, kmeans, steps, '--save_every', EVERY, *more)
    output = save.with_suffix('.txt')
    try:
        assert start(script, argv, output, ranks).wait(SECONDS) == 0, output.read_text()[-3000:]
    finally:
        kill(processes_of(save))


def assert_same(one: Path, two: Path) -> None:
    assert checkpoints(one) == checkpoints(two) and checkpoints(one)
    assert log_without_seconds(one) == log_without_seconds(two)


def kill_something(save: Path, running: subprocess.Popen, chance: random.Random) -> str:
    """End everything, a rank, or a process that makes batches; what then remains must end by itself."""
    what, victims = chance.choice(['everything', 'a rank', 'a data worker']), []
    while not victims and running.poll() is None:
        ranks, workers = ranks_and_data_workers(save)
        victims = {'everything': processes_of(save), 'a rank': ranks, 'a data worker': workers}[what]
        time.sleep(0.05)
    kill(victims if what == 'everything' else chance.sample(victims, min(1, len(victims))))
    deadline = time.monotonic() + 60
    while victims and any(ranks_and_data_workers(save)):
        assert time.monotonic() < deadline, f'{what} was killed, others go on'
        time.sleep(0.2)
    return what if victims else 'nothing'


@pytest.mark.parametrize(('stage', 'ranks'), [(1, 2), (2, 1)])
def test_killed_at_random_moments_it_ends_with_the_bytes_of_an_undisturbed_run(stage, ranks, data, tiny,  # noqa: F811
                                                                              tmp_path):
    small = '--num_workers', 1, '--batch_size', 4
    run_whole(stage, data, tmp_path / 'whole', tiny['kmeans'], ranks, STEPS, *small)
    save, chance, killed = tmp_path / 'killed', random.Random(stage), []
    script, argv = training(stage, data, save, tiny['kmeans'], STEPS, '--save_every', EVERY, *small)
    output = tmp_path / 'killed.txt'
    last = STEPS - 10 * EVERY  # a kill may come this many steps after its goal
    for goal in sorted(chance.sample(range(last), min(KILLS, last))):
        begun_at = saved_step(stage, save)
        running = start(script, argv + (resumed_from(stage, save) if begun_at else []), output, ranks)
        early = time.monotonic() + chance.uniform(0, 10) if chance.random() < 0.2 else float('inf')
        deadline = time.monotonic() + SECONDS
        while running.poll() is None and saved_step(stage, save) <= max(goal, begun_at) and time.monotonic() < early:
            assert time.monotonic() < deadline, output.read_text()[-3000:]
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 0.3))
        killed.append((kill_something(save, running, chance), saved_step(stage, save)))
        kill(processes_of(save))  # the scheduler, and msrun, which waits for it
        running.wait()
    print(f'stage {stage}: killed {killed}')
    assert 'nothing' not in dict(killed[:-1]) and killed[-1][1] > 0
    if saved_step(stage, save) < STEPS:
        assert start(script, argv + resumed_from(stage, save), output, ranks).wait(SECONDS) == 0, \
            output.read_text()[-3000:]
    assert_same(save, tmp_path / 'whole')


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk that holds what either training saves (stage 2: 55 MB), old and new beside each other."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    if shutil.which('mount') is None or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=160m', 'ict', str(folder)],
                                                       capture_output=True).returncode:
        pytest.skip('a small disk cannot be mounted here')
    yield folder
    subprocess.run(['umount', '--lazy', str(folder)], check=True)


def fill(disk: Path) -> Path:
    """A file that takes all the room that is left."""
    path = disk / 'filler'
    with open(path, 'wb', buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(bytes(4096))
    return path


def begun(stage: int, save: Path, script: str, argv: list[str], output: Path, goal: int) -> subprocess.Popen:
    """A training, begun or resumed, that has saved more than ``goal`` steps since, or has ended."""
    begun_at = saved_step(stage, save)
    output.unlink(missing_ok=True)
    running = start(script, argv + (resumed_from(stage, save) if begun_at else []), output)
    while running.poll() is None and saved_step(stage, save) <= begun_at + goal:
        time.sleep(0.01)
    return running


@pytest.mark.parametrize('stage', [1, 2])
def test_a_disk_that_is_full_at_random_moments_ends_it_with_a_line_and_costs_nothing(stage, data, tiny,  # noqa: F811
                                                                                   tmp_path, small_disk):
    steps, chance = 300, random.Random(stage)
    run_whole(stage, data, tmp_path / 'whole', tiny['kmeans'], 1, steps)
    save, output = small_disk / 'save', tmp_path / 'full.txt'
    script, argv = training(stage, data, save, tiny['kmeans'], steps, '--save_every', EVERY)
    for _ in range(5):
        running = begun(stage, save, script, argv, output, chance.randint(0, 50))
        time.sleep(chance.uniform(0, 0.1))
        filler = fill(small_disk)
        assert running.wait(SECONDS) == 2, output.read_text()[-3000:]
        assert 'No space left on device' in output.read_text() and 'Traceback' not in output.read_text()
        for path in save.glob('*.ckpt'):
            checkpoint.read(path)
        filler.unlink()
    assert start(script, argv + resumed_from(stage, save), output).wait(SECONDS) == 0, output.read_text()[-3000:]
    assert_same(save, tmp_path / 'whole')


@pytest.mark.parametrize('stage', [1, 2])
def test_a_data_folder_that_goes_away_ends_it_with_a_line_and_costs_nothing(stage, data, tiny, tmp_path):  # noqa: F811
    steps, chance = 300, random.Random(stage)
    run_whole(stage, data, tmp_path / 'whole', tiny['kmeans'], 1, steps, '--num_workers', 2)
    save, output, away = tmp_path / 'save', tmp_path / 'away.txt', tmp_path / 'away'
    script, argv = training(stage, data, save, tiny['kmeans'], steps, '--save_every', EVERY, '--num_workers', 2)
    for _ in range(3):
        running = begun(stage, save, script, argv, output, chance.randint(0, 60))
        data['pictures'].rename(away)
        assert running.wait(SECONDS) == 2, output.read_text()[-3000:]
        assert f'{data["pictures"]}' in output.read_text().rpartition('error: ')[2]
        again = start(script, argv + resumed_from(stage, save), output)
        assert again.wait(SECONDS) == 2 and output.read_text().rstrip().endswith('no such file or folder')
        away.rename(data['pictures'])
    assert start(script, argv + resumed_from(stage, save), output).wait(SECONDS) == 0, output.read_text()[-3000:]
    assert_same(save, tmp_path / 'whole')
