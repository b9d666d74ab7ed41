"""Small trainings of both stages, and what they leave."""
from __future__ import annotations

import csv
from pathlib import Path

from ict import checkpoint
from ict.errors import UserError
from tests.conftest import DEVICE, files_of


def argv_1(pictures: Path, save: Path, kmeans: Path, *more: object) -> list[str]:
    return [str(a) for a in ('--data_path', pictures, '--random_stroke', '--save_path', save, '--kmeans', kmeans,
                             '--n_layer', 1, '--n_embd', 16, '--n_head', 2, '--prior_size', 8, '--GELU_2',
                             '--batch_size', 2, '--log_every', 2, '--save_every', 3, '--num_workers', 0,
                             '--device_target', DEVICE, '--learning_rate', 1e-2, '--lr_schedule', 'cosine',
                             '--warmup_steps', 3, '--clip_norm', 1, '--weight_decay', 0.01, *more)]


def argv_2(pictures: Path, masks: Path, save: Path, kmeans: Path, *more: object) -> list[str]:
    return [str(a) for a in ('--input', pictures, '--mask', masks, '--save_path', save, '--kmeans', kmeans,
                             '--base_channels', 4, '--residual_blocks', 1, '--image_size', 32, '--prior_size', 8,
                             '--prior_random_degree', 3, '--batch_size', 2, '--log_every', 2, '--save_every', 3,
                             '--num_workers', 0, '--device_target', DEVICE, '--lr', 1e-3, '--style_loss_weight', 0,
                             '--content_loss_weight', 0, *more)]


def trained(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in files_of(folder).items() if name.endswith('.ckpt')}


def log_without_seconds(folder: Path) -> list[dict[str, str]]:
    [log] = folder.glob('*_log.csv')
    with open(log, newline='') as stream:
        return [{k: v for k, v in row.items() if k != 'seconds'} for row in csv.DictReader(stream)]


def step_of(state: Path) -> int:
    """The step of a training state; -1 while there is none."""
    try:
        return checkpoint.read(state).metadata['progress']['step']
    except UserError:
        return -1
