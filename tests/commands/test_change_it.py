"""What the readme shows under 'Change it' is all that a new order, loss, mask source or dataset takes."""
from __future__ import annotations

import importlib
import re
import subprocess

import numpy as np
import pytest

from Guided_Upsample import train as train_2
from Guided_Upsample.models import config, loss
from ict.training import mask_sources
from ict.training.losses import Loss
from tests.conftest import DEVICE, ROOT, photograph
from Transformer import infer, train
from Transformer.models import sampling

SECTION = (ROOT / 'readme.md').read_text().split('## Change it')[1].split('\n## ')[0]


def snippet(name: str) -> str:
    """The block of code in which a name is defined."""
    return next(block for block in re.findall(r'```python\n(.*?)```', SECTION, re.DOTALL) if name in block)


def test_a_sampling_order(tiny, folders, monkeypatch):
    monkeypatch.setattr(sampling, 'ORDERS', dict(sampling.ORDERS))
    exec(snippet('Backwards'), vars(sampling))
    order = []

    def logits_at(tokens: np.ndarray, mask: np.ndarray, positions: np.ndarray) -> np.ndarray:
        order.append(positions[0, 0] if positions.shape[1] == 1 else None)
        return np.zeros((*positions.shape, 8), np.float32)

    how = sampling.SamplingConfig(schedule='backwards')
    sampling.Sampler(logits_at, 4, how)(np.zeros((1, 16), np.int32), np.ones((1, 16), bool),
                                        [np.random.default_rng(0)])
    assert order[1:] == list(range(14, -1, -1))  # the first pass reads everything
    assert infer.main([str(a) for a in (
        '--ckpt_path', tiny['transformer'], '--image_url', folders['images'], '--mask_url', folders['masks'],
        '--save_url', folders['save'], '--sample_steps', 2, '--schedule', 'backwards', '--device_target',
        DEVICE)]) == 0


@pytest.fixture
def training(folders, tiny) -> list:
    return ['--input', folders['images'], '--save_path', folders['save'], '--image_size', 32, '--prior_size', 8,
            '--base_channels', 4, '--residual_blocks', 1, '--batch_size', 2, '--num_workers', 0, '--kmeans',
            tiny['kmeans'], '--max_iteration', 1, '--content_loss_weight', 0, '--style_loss_weight', 0,
            '--inpaint_adv_loss_weight', 0, '--device_target', DEVICE]


def test_a_loss(training, folders, monkeypatch, tmp_path):
    (tmp_path / 'added.py').write_text(snippet('roughness'))  # MindSpore compiles functions of files alone
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(loss, 'roughness', importlib.import_module('added').roughness, raising=False)
    entry = eval(' '.join(re.search(r"Loss\('roughness'.*?\)", SECTION, re.DOTALL)[0].split()), {'Loss': Loss})
    monkeypatch.setattr(config, 'LOSSES', (*config.LOSSES, entry))
    assert train_2.main([str(a) for a in (*training, '--mask_type', 1, '--rough_weight', 0.1)]) == 0
    head, row = (folders['save'] / 'InpaintingModel_gen_log.csv').read_text().splitlines()
    assert float(dict(zip(head.split(','), row.split(','), strict=True))['roughness']) > 0


def test_a_mask_source(training, monkeypatch):
    monkeypatch.setattr(mask_sources, 'MASK_SOURCES', mask_sources.MASK_SOURCES)
    exec(snippet('Half'), vars(mask_sources))
    try:
        source = mask_sources.MASK_SOURCES[4]()
        assert source.draw(32, np.random.default_rng(0), []).mean() == 0.5
        assert train_2.main([str(a) for a in (*training, '--mask_type', 4)]) == 0
    finally:
        del mask_sources.MASK_SOURCES[4]


def test_a_dataset(tmp_path, tiny):
    from PIL import Image
    (tmp_path / 'photos').mkdir()
    for i in range(3):
        Image.fromarray(photograph(i)).save(tmp_path / 'photos' / f'{i}.jpg')
    shell, argv = re.search(r'```sh\n(find .*?) && python Transformer/train.py (.*?)\n```', SECTION).groups()
    subprocess.run(shell.replace('/data/photos', str(tmp_path / 'photos')), shell=True, cwd=tmp_path, check=True)
    argv = argv.replace('mine.txt', str(tmp_path / 'mine.txt')).split()
    assert train.main([*argv, '--save_path', str(tmp_path / 'save'), '--n_layer', '1', '--n_embd', '16', '--n_head',
                       '2', '--prior_size', '8', '--max_steps', '1', '--num_workers', '0', '--kmeans',
                       str(tiny['kmeans']), '--device_target', DEVICE]) == 0
