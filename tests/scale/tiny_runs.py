"""Command lines of miniature trainings and inferences, and what they leave behind."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import DEVICE, files_of, photograph


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


def checkpoints(save: Path) -> dict[str, bytes]:
    """Every checkpoint of a training."""
    return {name: content for name, content in files_of(save).items() if name.endswith('.ckpt')}
