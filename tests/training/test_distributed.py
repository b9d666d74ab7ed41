"""Several ranks under msrun: the same training as one process with the whole batch; pictures shared out."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from Guided_Upsample import train as train_2
from ict import checkpoint, lock
from tests.conftest import DEVICE, ROOT, files_of, free_port
from tests.training.runs import argv_1, argv_2, log_without_seconds
from Transformer import train as train_1

pytestmark = pytest.mark.skipif(DEVICE != 'CPU', reason='needs a card for each rank')
TOLERANCE = 2e-5  # sums of gradients in another order, grown by Adam's first steps


def launch(script: str, argv: list[str], logs: Path) -> dict[str, Any]:
    """What starts a script on two ranks, for subprocess."""
    launcher = Path(sys.executable).with_name('msrun')
    return {'args': [str(launcher), '--worker_num=2', '--local_worker_num=2', f'--master_port={free_port()}',
                     '--join=True', f'--log_dir={logs}', str(ROOT / script), *argv, '--distributed'], 'cwd': logs,
            'env': {**os.environ, 'PATH': f'{launcher.parent}:{os.environ["PATH"]}'}}


def logged(logs: Path) -> str:
    return ''.join(p.read_text()[-2000:] for p in logs.glob('worker_*.log'))


def msrun(script: str, argv: list[str], logs: Path) -> None:
    done = subprocess.run(**launch(script, argv, logs), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr + logged(logs)


def process_of_rank(rank: int, mentioned: Path) -> int:
    """The process of a rank of msrun whose command line mentions a path."""
    for entry in Path('/proc').iterdir():
        try:
            if entry.name.isdigit() and str(mentioned) in (entry / 'cmdline').read_text() \
                    and {f'RANK_ID={rank}', 'MS_ROLE=MS_WORKER'} <= {*(entry / 'environ').read_text().split('\0')}:
                return int(entry.name)
        except OSError:  # it has ended
            continue
    raise AssertionError(f'no process of rank {rank}')


def assert_equal_weights(one: Path, two: Path) -> None:
    names = sorted(p.name for p in one.glob('*_latest.ckpt'))
    assert names == sorted(p.name for p in two.glob('*_latest.ckpt')) and names
    for name in names:
        a, b = checkpoint.read(one / name), checkpoint.read(two / name)
        for tensor in a.entries:
            np.testing.assert_allclose(a.array(tensor), b.array(tensor), atol=TOLERANCE, err_msg=f'{name} {tensor}')


@pytest.mark.parametrize('stage', [1, 2])
def test_two_ranks_train_as_one_process_with_the_double_batch(stage, pictures, masks, tiny, tmp_path):
    logs = tmp_path / 'logs'
    logs.mkdir()
    # The last of an option counts; small rates keep Adam's first steps from blowing rounding up.
    if stage == 1:
        more = ('--max_steps', 4, '--dynamic_weight', '--learning_rate', 1e-4, '--val_path', pictures, '--val_every', 1)
        alone = argv_1(pictures, tmp_path / 'alone', tiny['kmeans'], *more, '--batch_size', 4)
        both = argv_1(pictures, tmp_path / 'both', tiny['kmeans'], *more, '--batch_size', 2)
        assert train_1.main(alone) == 0
        msrun('Transformer/train.py', both, logs)
    else:
        more = ('--max_iteration', 4, '--lr', 1e-4, '--val_path', pictures, '--val_every', 1)
        alone = argv_2(pictures, masks, tmp_path / 'alone', tiny['kmeans'], *more, '--batch_size', 4)
        both = argv_2(pictures, masks, tmp_path / 'both', tiny['kmeans'], *more, '--batch_size', 2)
        assert train_2.main(alone) == 0
        msrun('Guided_Upsample/train.py', both, logs)
    assert_equal_weights(tmp_path / 'alone', tmp_path / 'both')
    one, two = log_without_seconds(tmp_path / 'alone'), log_without_seconds(tmp_path / 'both')
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert [key for key in a if a[key]] == [key for key in b if b[key]]
        for key in filter(a.get, a):
            assert float(b[key]) == pytest.approx(float(a[key]), rel=1e-3, abs=1e-4), key


def test_sigterm_to_one_rank_saves_and_ends_all(pictures, tiny, tmp_path):
    """Nothing but the stop saves here."""
    save, logs = tmp_path / 'a', tmp_path / 'logs'
    logs.mkdir()
    steps = 5000  # so that ranks whose signal got lost end by themselves
    argv = argv_1(pictures, save, tiny['kmeans'], '--max_steps', steps, '--save_every', steps, '--log_every', 1)
    launched = subprocess.Popen(**launch('Transformer/train.py', argv, logs), stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (save / 'ImageNet_log.csv').is_file():
            assert launched.poll() is None and time.monotonic() < deadline, logged(logs)
            time.sleep(0.1)
        assert not (save / 'ImageNet_latest.ckpt').exists()
        os.kill(process_of_rank(1, save), signal.SIGTERM)
        launched.wait(60)
    finally:
        launched.kill()
    step = checkpoint.read(save / 'ImageNet_latest_state.ckpt').metadata['progress']['step']
    assert 0 < step < steps and checkpoint.read(save / 'ImageNet_latest.ckpt').metadata['step'] == step


@pytest.mark.slow
def test_msrun_ends_when_one_rank_could_not_begin(pictures, tiny, tmp_path):
    """Rank 0 finds the folder locked and ends, before the ranks have joined."""
    save, logs = tmp_path / 'a', tmp_path / 'logs'
    save.mkdir()
    logs.mkdir()
    with lock.locked(save, '--save_path'):
        launched = subprocess.Popen(**launch('Transformer/train.py', argv_1(pictures, save, tiny['kmeans']), logs),
                                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            assert launched.wait(120) != 0
        finally:
            launched.kill()
    assert 'is in use by another run' in logged(logs)


def test_two_ranks_share_the_pictures_out_and_make_the_same_files(tiny, folders, tmp_path):
    from Guided_Upsample import infer as stage_2
    from Transformer import infer as stage_1
    first = [str(a) for a in ('--ckpt_path', tiny['transformer'], '--image_url', folders['images'], '--mask_url',
                              folders['masks'], '--sample_steps', 3, '--device_target', 'CPU', '--save_url')]
    second = [str(a) for a in ('--ckpt_path', tiny['generator'], '--input', folders['images'], '--mask',
                               folders['masks'], '--image_size', 64, '--device_target', 'CPU')]
    one, two = tmp_path / 'one', tmp_path / 'two'
    assert stage_1.main([*first, str(one / 'AP')]) == 0
    assert stage_2.main([*second, '--prior', str(one / 'AP'), '--save_path', str(one)]) == 0
    for i in range(2):
        (tmp_path / f'logs{i}').mkdir()
    msrun('Transformer/infer.py', [*first, str(two / 'AP')], tmp_path / 'logs0')
    second += ['--prior', str(two / 'AP'), '--save_path', str(two)]
    msrun('Guided_Upsample/infer.py', second, tmp_path / 'logs1')
    assert files_of(one) == files_of(two)
