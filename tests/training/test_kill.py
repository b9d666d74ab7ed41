"""Kills, dead workers, full disks and losses that are not numbers: what was saved stays whole."""
from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from Guided_Upsample import train as train_2
from ict import checkpoint
from ict.errors import UserError
from ict.training import checkpointer
from ict.training.checkpointer import Progress
from tests.conftest import ROOT
from tests.training.runs import argv_1, argv_2, step_of, trained
from Transformer import train as train_1


@pytest.mark.parametrize('stage', [1, 2])
def test_kill_9_at_any_moment_leaves_whole_files_and_a_training_that_ends_the_same(stage, pictures, masks, tiny,
                                                                                   tmp_path):
    """Also during a save: with --save_every 1 the process saves most of the time."""
    script, name, weights, steps = (('Transformer/train.py', train_1.NAME, 'ImageNet_latest.ckpt', 120) if stage == 1
                                    else ('Guided_Upsample/train.py', train_2.GEN, '', 80))

    def argv(save: Path, *more: object) -> list[str]:
        if stage == 1:
            return argv_1(pictures, save, tiny['kmeans'], '--max_steps', steps, *more)
        return argv_2(pictures, masks, save, tiny['kmeans'], '--max_iteration', steps, *more)
    save = tmp_path / 'parts'
    state = save / checkpointer.state_name(name)
    last = 0
    for i, extra in enumerate((0.05, 0.31)):
        child = subprocess.Popen([sys.executable, str(ROOT / script), *argv(
            save, '--save_every', 1, *(['--ckpt_path', save / weights] if i else []))],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.time() + 120
        while not (state.is_file() and step_of(state) >= last + 3):
            assert time.time() < deadline and child.poll() is None
            time.sleep(0.01)
        time.sleep(extra)
        child.send_signal(signal.SIGKILL)
        child.wait()
        last = step_of(state)
    assert 6 <= last < steps
    (save / '.part-1-0.ckpt').write_bytes(b'what a kill during a save may leave')
    main = train_1.main if stage == 1 else train_2.main
    assert main(argv(save, '--save_every', 1000, '--ckpt_path', save / weights)) == 0
    assert main(argv(tmp_path / 'whole', '--save_every', 1000)) == 0
    assert not list(save.glob('.part-*'))
    one, two = (checkpoint.read(folder / checkpointer.state_name(name)) for folder in (tmp_path / 'whole', save))
    assert one.entries.keys() == two.entries.keys()
    for tensor in one.entries:
        assert one.array(tensor).tobytes() == two.array(tensor).tobytes(), tensor


def test_a_killed_worker_costs_nothing(pictures, tiny, tmp_path, monkeypatch):
    save = tmp_path / 'a'
    real = Progress.add_step

    def add_step(progress: Progress, *args) -> None:
        real(progress, *args)
        if progress.step == 5:
            for child in multiprocessing.active_children():
                child.kill()
    monkeypatch.setattr(Progress, 'add_step', add_step)
    with pytest.raises(UserError, match='a data worker died'):
        train_1.main(argv_1(pictures, save, tiny['kmeans'], '--max_steps', 400, '--save_every', 300,
                            '--num_workers', 1))
    assert checkpoint.read(save / 'ImageNet_latest.ckpt').metadata['step'] >= 5


def test_a_training_that_ends_after_its_first_best_goes_on(pictures, tiny, tmp_path, monkeypatch):
    save, keep = tmp_path / 'a', checkpointer.Checkpointer.save_best
    one = argv_1(pictures, save, tiny['kmeans'], '--max_steps', 6, '--val_path', pictures, '--val_every', 2,
                 '--save_every', 5)

    def then_ends(self, progress):
        keep(self, progress)
        raise MemoryError
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(checkpointer.Checkpointer, 'save_best', then_ends)
        train_1.main(one)
    assert (save / 'ImageNet_best.ckpt').is_file()
    assert train_1.main([*one, '--ckpt_path', str(save / 'ImageNet_latest.ckpt')]) == 0
    one[one.index(str(save))] = str(tmp_path / 'b')
    assert train_1.main(one) == 0
    assert trained(save) == trained(tmp_path / 'b')


def test_a_save_that_fails_leaves_the_last_one_whole(pictures, tiny, tmp_path, monkeypatch):
    save = tmp_path / 'a'
    assert train_1.main(argv_1(pictures, save, tiny['kmeans'], '--max_steps', 3)) == 0
    before = trained(save)
    real = checkpoint.save

    def failing(temporary: Path, *args: object) -> None:
        real(temporary, *args)
        temporary.write_bytes(temporary.read_bytes()[:100])
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(checkpoint, 'save', failing)
    with pytest.raises(UserError, match=r'cannot save \(No space left on device\).*whole, the latest of step 3'):
        train_1.main(argv_1(pictures, save, tiny['kmeans'], '--max_steps', 6, '--ckpt_path',
                            save / 'ImageNet_latest.ckpt'))
    assert trained(save) == before


def test_a_loss_that_is_not_a_number_stops_before_a_good_checkpoint_is_overwritten(pictures, tiny, tmp_path):
    save = tmp_path / 'a'
    assert train_1.main(argv_1(pictures, save, tiny['kmeans'], '--max_steps', 3)) == 0
    before = trained(save)
    with pytest.raises(UserError, match=r'step \d+: .*nan; stopped, the checkpoints of step \d+ are whole'):
        train_1.main(argv_1(pictures, save, tiny['kmeans'], '--max_steps', 900, '--ckpt_path',
                            save / 'ImageNet_latest.ckpt', '--learning_rate', 1e30, '--save_every', 1000))
    assert trained(save) == before
