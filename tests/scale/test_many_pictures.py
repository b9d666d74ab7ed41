"""Many small pictures through both stages with the bundled pair: memory, speed, kills."""
from __future__ import annotations

import os
import random
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.conftest import DEVICE, ROOT, files_of, photograph
from tests.scale.tiny_runs import kill, processes_of, ranks_and_data_workers, start, strings

pytestmark = [pytest.mark.slow, pytest.mark.skipif(DEVICE != 'CPU', reason='its ranks would share a card')]
PICTURES = int(os.environ.get('ICT_TEST_PICTURES', '300'))
KILLS = int(os.environ.get('ICT_TEST_KILLS', '20')) // 2  # of each stage
SECONDS = 60 + 2 * PICTURES  # that a stage may take
GROWTH = 1.03  # of the memory, from the second to the last fifth of the pictures
STAGES = (1, 2)


@pytest.fixture(scope='module')
def many(tmp_path_factory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in ('pictures', 'masks')}
    rng = np.random.default_rng(0)
    for i in range(PICTURES):
        below = f'{i % 10}/{i:05d}.png'
        for folder in folders.values():
            (folder / below).parent.mkdir(exist_ok=True)
        height, width = rng.integers(40, 64, 2)
        Image.fromarray(photograph(i, height, width)).save(folders['pictures'] / below)
        mask = np.zeros((height, width), np.uint8)
        mask[10:10 + rng.integers(5, 20), 10:10 + rng.integers(5, 20)] = 255
        Image.fromarray(mask).save(folders['masks'] / below)
    return folders


def inference(stage: int, many: dict[str, Path], save: Path) -> tuple[str, list[str]]:
    pair = ROOT / 'ckpts_ICT' / 'demo'
    if stage == 1:
        return 'Transformer/infer.py', strings(
            '--ckpt_path', pair / 'Transformer.ckpt', '--image_url', many['pictures'], '--mask_url', many['masks'],
            '--sample_steps', 2, '--device_target', DEVICE, '--save_url', save / 'AP')
    return 'Guided_Upsample/infer.py', strings(
        '--ckpt_path', pair, '--input', many['pictures'], '--mask', many['masks'], '--image_size', 64,
        '--device_target', DEVICE, '--prior', save / 'AP', '--save_path', save)


def results(stage: int, save: Path) -> dict[str, tuple[int, int]]:
    """What tells whether a stage's finished pictures were made again: inode and time of change of each."""
    found = {}
    for path in (save / 'AP' / 'condition_1' if stage == 1 else save).rglob('[0-9]*.png'):
        if stage == 1 or 'AP' not in path.parts:
            with suppress(FileNotFoundError):
                found[str(path)] = (path.stat().st_ino, path.stat().st_mtime_ns)
    return found


class Memory(threading.Thread):
    """Watches the memory of a run's ranks, and how many pictures are finished."""

    def __init__(self, stage: int, save: Path) -> None:
        super().__init__(daemon=True)
        self.stage, self.save, self.over = stage, save, threading.Event()
        self.seen: list[tuple[float, int, dict[int, int]]] = []  # time, finished pictures, bytes of each process

    def run(self) -> None:
        while not self.over.wait(0.5):
            with suppress(psutil.Error):
                used = {one.pid: one.memory_info().rss for one in ranks_and_data_workers(self.save)[0]}
                self.seen.append((time.monotonic(), len(results(self.stage, self.save)), used))

    def growth(self, first: float, last: float) -> float:
        """The largest growth of a process between two shares of the pictures."""
        def usual(low: float, high: float) -> dict[int, float]:
            there = [used for _, done, used in self.seen if low * PICTURES <= done < high * PICTURES]
            return {pid: float(np.median([used[pid] for used in there if pid in used]))
                    for pid in {pid for used in there for pid in used}}
        before, after = usual(first, first + 0.2), usual(last, last + 0.2)
        assert before.keys() & after.keys(), 'too few pictures to see anything'
        return max(after[pid] / before[pid] for pid in before.keys() & after.keys())

    def pictures_a_minute(self) -> float:
        """Between the first and the last finished picture."""
        moments = [(at, done) for at, done, _ in self.seen if 0 < done < PICTURES]
        return 60 * (moments[-1][1] - moments[0][1]) / (moments[-1][0] - moments[0][0])


def run(stage: int, many: dict[str, Path], save: Path, ranks: int) -> None:
    """A stage to its end, with what was measured."""
    save.mkdir(exist_ok=True)
    output = save.with_suffix('.txt')
    memory = Memory(stage, save)
    memory.start()
    status = start(*inference(stage, many, save), output, ranks).wait(SECONDS)
    memory.over.set()
    memory.join()
    assert status == 0, output.read_text()[-3000:]
    growth = memory.growth(0.2, 0.8)
    largest = max(sum(used.values()) for _, _, used in memory.seen) / 2 ** 20
    print(f'stage {stage}, {ranks} rank(s), {PICTURES} pictures: {memory.pictures_a_minute():.0f} a minute, '
          f'{largest:.0f} MiB at most, memory grew {100 * (growth - 1):+.1f} %')
    assert growth < GROWTH, memory.seen


@pytest.fixture(scope='module')
def whole(many, tmp_path_factory) -> Path:
    """What one rank makes of them, undisturbed."""
    save = tmp_path_factory.mktemp('whole') / 'save'
    for stage in STAGES:
        run(stage, many, save, 1)
        assert len(results(stage, save)) == PICTURES
    return save


def test_two_ranks_make_the_same_files_in_flat_memory(many, whole, tmp_path):
    for stage in STAGES:
        run(stage, many, tmp_path / 'save', 2)
    assert files_of(tmp_path / 'save') == files_of(whole)


def test_killed_at_random_moments_nothing_is_lost_and_nothing_is_done_twice(many, whole, tmp_path):
    save, output, chance = tmp_path / 'save', tmp_path / 'said.txt', random.Random(0)
    save.mkdir()
    for stage in STAGES:
        seen: dict[str, tuple[int, int]] = {}
        script, argv = inference(stage, many, save)
        for attempt in range(KILLS):
            ranks = 1 + attempt % 2
            running = start(script, argv, output, ranks)
            goal = len(seen) + chance.randint(0, 2 * PICTURES // (KILLS + 1))
            while running.poll() is None and len(results(stage, save)) <= goal:
                time.sleep(0.1)
            ranks_there = ranks_and_data_workers(save)[0]
            kill(ranks_there if chance.random() < 0.5 else chance.sample(ranks_there, min(1, len(ranks_there))))
            deadline = time.monotonic() + 60
            while any(ranks_and_data_workers(save)):
                assert time.monotonic() < deadline, 'a rank goes on without the other'
                time.sleep(0.2)
            kill(processes_of(save))  # the scheduler, and msrun, which waits for it
            running.wait()
            before, seen = seen, results(stage, save)
            assert before.items() <= seen.items()
        assert start(script, argv, output).wait(SECONDS) == 0, output.read_text()[-3000:]
        assert seen.items() <= results(stage, save).items() and len(seen) > PICTURES // 4
    assert files_of(save) == files_of(whole)
