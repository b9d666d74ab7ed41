"""An interrupted run loses nothing: files are whole whenever it is killed, and the next run ends as if it was not."""
from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ict import files
from tests.conftest import DEVICE, ROOT, files_of, photograph

PICTURES, SAMPLES = 8, 2
FILES = PICTURES * SAMPLES * 2 + 6  # priors, results; two manifests, two files of scores, two tables


@pytest.fixture
def call(tiny, tmp_path):
    """The arguments of a run.py that writes to a given folder."""
    for name in ('images', 'masks'):
        (tmp_path / name).mkdir()
    for i in range(PICTURES):
        Image.fromarray(photograph(i, 40 + i, 50)).save(tmp_path / 'images' / f'p{i}.png')
        mask = np.zeros((40 + i, 50), np.uint8)
        mask[10:20, 10 + i:30] = 255
        Image.fromarray(mask).save(tmp_path / 'masks' / f'p{i}.png')

    def arguments(save: Path) -> list[str]:
        return [sys.executable, str(ROOT / 'run.py'), '--transformer_ckpt', str(tiny['transformer']), '--upsample_ckpt',
                str(tiny['generator']), '--input_image', str(tmp_path / 'images'), '--input_mask',
                str(tmp_path / 'masks'), '--save_place', str(save), '--sample_num', str(SAMPLES), '--keep_size',
                '--device_target', DEVICE]
    return arguments


def finished(argv: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(argv, capture_output=True, text=True, timeout=300)


def whole_files(folder: Path) -> dict[str, bytes]:
    """The finished files, each of which must be readable."""
    found = {name: content for name, content in files_of(folder).items()
             if not Path(name).name.startswith(files.TEMPORARY)}
    for name, content in found.items():
        if name.endswith('.png'):
            Image.open(io.BytesIO(content)).load()
        elif name.endswith('.json'):
            json.loads(content)
    return found


def children_of(pid: int) -> list[int]:
    return [int(p) for p in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def kill_at(argv: list[str], save: Path, chance: random.Random, longest: float) -> int:
    """Start a run and kill it: half the times at a moment of the clock, half when a random file has appeared.

    Half the times all its processes, half run.py alone, whose stage must end with it.
    """
    run = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        if chance.random() < 0.5:
            moment, wanted = chance.uniform(0, longest), FILES + 1
        else:
            moment, wanted = 60.0, chance.randint(1, FILES)
        end = time.monotonic() + moment
        while time.monotonic() < end and run.poll() is None and sum(p.is_file() for p in save.rglob('*')) < wanted:
            time.sleep(0.01)
        stages = children_of(run.pid) if run.poll() is None else []
        if chance.random() < 0.5:
            run.kill()
        else:
            os.killpg(run.pid, signal.SIGKILL)
    except ProcessLookupError:
        stages = []
    status = run.wait()
    end = time.monotonic() + 20
    while any(map(alive, stages)):
        assert time.monotonic() < end, 'a stage goes on without run.py'
        time.sleep(0.01)
    return status


@pytest.mark.skipif(sys.platform != 'linux', reason='looks at processes as Linux shows them')
@pytest.mark.parametrize('kills', [4, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_finished_files_are_whole_and_the_end_is_the_same(call, tmp_path, kills):
    started = time.monotonic()
    done = finished(call(tmp_path / 'undisturbed'))
    longest = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    wanted = files_of(tmp_path / 'undisturbed')
    assert len(wanted) == FILES
    chance, killed = random.Random(kills), 0
    for attempt in range(kills):
        save = tmp_path / f'disturbed {attempt // 4}'  # four kills one after another, then a run that is left alone
        killed += kill_at(call(save), save, chance, longest) == -signal.SIGKILL
        before = whole_files(save) if save.exists() else {}
        assert all(content == wanted[name] for name, content in before.items() if name.endswith('.png'))
        if attempt % 4 == 3 or attempt == kills - 1:
            done = finished(call(save))
            assert done.returncode == 0, done.stderr
            assert files_of(save) == wanted  # nothing unfinished is left either
    assert killed >= kills // 2


@pytest.mark.parametrize(('number', 'to_all'), [(signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, False)])
def test_a_polite_end_is_said_and_continued(call, tmp_path, number, to_all):
    save, samples = tmp_path / 'save', 10  # some seconds: a signal to run.py alone is passed on after one
    argv = [*call(save), '--sample_num', str(samples)]
    run = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while run.poll() is None and len(list(save.glob('AP/condition_*/p*.png'))) < 3:
        time.sleep(0.01)
    os.killpg(run.pid, number) if to_all else run.send_signal(number)
    said = run.communicate(timeout=60)[1]
    assert run.returncode == 128 + number and 'the same command continues' in said and 'Traceback' not in said
    kept = len(list(save.glob('AP/condition_*/p*.png')))
    assert kept >= 3
    done = finished(argv)
    assert done.returncode == 0 and f'{kept} finished priors are kept' in done.stderr
    assert len(files_of(save)) == FILES + 2 * PICTURES * (samples - SAMPLES)
