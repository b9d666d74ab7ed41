"""Command lines of miniature trainings and inferences, and what they leave behind."""
from __future__ import annotations

import csv
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from ict import checkpoint
from ict.errors import UserError
from tests.conftest import DEVICE, ROOT, files_of, free_port, photograph


def strings(*argv: object) -> list[str]:
    return [str(a) for a in argv]


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Path]:
    """Ten pictures with a mask each."""
    folders = {name: tmp_path / name for name in ('pictures', 'masks')}
    for folder in folders.values():
        folder.mkdir()
    for i in range(10):
        Image.fromarray(photograph(i, 40 + i, 40)).save(folders['pictures'] / f'{i}.png')
        mask = np.zeros((40 + i, 40), np.uint8)
        mask[8:20, 10 + i:30] = 255
        Image.fromarray(mask).save(folders['masks'] / f'{i}.png')
    return folders


def training(stage: int, data: dict[str, Path], save: Path, kmeans: Path, steps: int,
             *more: object) -> tuple[str, list[str]]:
    """Script and options of a training; a small rate keeps Adam's first steps from blowing rounding up."""
    common = ('--save_path', save, '--kmeans', kmeans, '--prior_size', 8, '--num_workers', 0, '--device_target', DEVICE,
              '--log_every', 100)
    if stage == 1:
        return 'Transformer/train.py', strings(
            '--data_path', data['pictures'], '--random_stroke', *common, '--n_layer', 1, '--n_embd', 16, '--n_head', 2,
            '--GELU_2', '--learning_rate', 1e-4, '--max_steps', steps, *more)
    return 'Guided_Upsample/train.py', strings(
        '--input', data['pictures'], '--mask', data['masks'], *common, '--base_channels', 4, '--residual_blocks', 1,
        '--image_size', 32, '--lr', 1e-4, '--style_loss_weight', 0, '--content_loss_weight', 0, '--max_iteration',
        steps, *more)


def inference(data: dict[str, Path], save: Path, tiny: dict[str, Path]) -> list[tuple[str, list[str]]]:
    """Scripts and options of both stages' inference."""
    return [('Transformer/infer.py', strings(
        '--ckpt_path', tiny['transformer'], '--image_url', data['pictures'], '--mask_url', data['masks'],
        '--sample_steps', 3, '--device_target', DEVICE, '--save_url', save / 'AP')),
            ('Guided_Upsample/infer.py', strings(
                '--ckpt_path', tiny['generator'], '--input', data['pictures'], '--mask', data['masks'],
                '--image_size', 64, '--device_target', DEVICE, '--prior', save / 'AP', '--save_path', save))]


def resumed_from(stage: int, save: Path) -> list[str]:
    """The option that continues a training."""
    return ['--ckpt_path', str(save / 'ImageNet_latest.ckpt' if stage == 1 else save)]


def saved_step(stage: int, save: Path) -> int:
    """The step of a training's latest state; 0 while there is none."""
    try:
        state = checkpoint.read(save / ('ImageNet_latest_state.ckpt' if stage == 1
                                        else 'InpaintingModel_gen_latest_state.ckpt'))
    except UserError:
        return 0
    return state.metadata['progress']['step']


def log_without_seconds(save: Path) -> list[dict[str, str]]:
    """The rows of a training's log."""
    [log] = save.glob('*_log.csv')
    with open(log, newline='') as stream:
        return [{key: value for key, value in row.items() if key != 'seconds'} for row in csv.DictReader(stream)]


def start(script: str, argv: list[str], output: Path, ranks: int = 1) -> subprocess.Popen:
    """Start a script, or that many ranks of it under msrun; what it prints is added to a file."""
    launcher = Path(sys.executable).with_name('msrun')
    command, argv = [sys.executable], [str(ROOT / script), *argv]
    if ranks > 1:
        command = [str(launcher), f'--worker_num={ranks}', f'--local_worker_num={ranks}',
                   f'--master_port={free_port()}', '--join=True', f'--log_dir={output}-ranks']
        argv.append('--distributed')
    with open(output, 'ab') as stream:
        return subprocess.Popen([*command, *argv], stdout=stream, stderr=subprocess.STDOUT, cwd=output.parent,
                                env={**os.environ, 'PATH': f'{launcher.parent}:{os.environ["PATH"]}'})


def processes_of(mentioned: Path) -> list[psutil.Process]:
    """All processes whose command line mentions a path."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if str(mentioned) in ' '.join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def ranks_and_data_workers(save: Path) -> tuple[list[psutil.Process], list[psutil.Process]]:
    """The processes that train into a folder, and those that make their batches."""
    ranks, workers = [], []
    for one in processes_of(save):
        with suppress(psutil.Error):
            is_script = one.cmdline()[1:2] and one.cmdline()[1].endswith('.py')  # not msrun
            if is_script and one.environ().get('MS_ROLE') != 'MS_SCHED':
                (workers if one.parent().cmdline() == one.cmdline() else ranks).append(one)
    return ranks, workers


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def checkpoints(save: Path) -> dict[str, bytes]:
    """Every checkpoint of a training."""
    return {name: content for name, content in files_of(save).items() if name.endswith('.ckpt')}
