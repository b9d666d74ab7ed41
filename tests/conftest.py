"""Shared pieces: parity arrays, made-up weights as shared/parity describes them, tiny checkpoints and pictures."""
from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ict import checkpoint
from ict.device import runtime
from ict.errors import UserError

os.environ.setdefault('GLOG_v', '3')
ROOT = Path(__file__).resolve().parents[1]
PARITY = Path(__file__).parent / 'parity'
DEVICE = os.environ.get('ICT_TEST_DEVICE', 'CPU')  # GPU: networks, training and both stages' commands on the card


def parity(name: str) -> dict[str, np.ndarray]:
    with np.load(PARITY / name) as kept:
        return dict(kept)


def names(file: str) -> dict:
    return json.loads((PARITY / file).read_text())


def made_up(shapes: dict[str, tuple[int, ...]], seed: int, norm_scale: str = '.gamma') -> dict[str, np.ndarray]:
    """Weights as the parity arrays were made with."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name in sorted(shapes):
        if name.endswith('attn.mask') or name.startswith('features.'):
            continue
        shape = tuple(shapes[name])
        scale = 0.05 if len(shape) < 2 else 1 / np.sqrt(np.prod(shape[1:]))
        weights[name] = rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
        if name.endswith(norm_scale):
            weights[name] += 1
    return weights


def set_weights(net, weights: dict[str, np.ndarray]) -> None:
    import mindspore as ms
    parameters = {p.name: p for p in net.get_parameters()}
    assert parameters.keys() == weights.keys()
    for name, parameter in parameters.items():
        parameter.set_data(ms.Tensor(weights[name]))


def pytest_sessionstart() -> None:
    """Every test in this process runs on one device; MindSpore takes the choice once, before it is imported."""
    try:
        runtime.start(DEVICE, 0)
    except UserError as error:
        pytest.exit(f'ICT_TEST_DEVICE={DEVICE}: {error}', 2)


@pytest.fixture(scope='session')
def colours() -> np.ndarray:
    return parity('data.npz')['palette']


@pytest.fixture(scope='session')
def tiny(tmp_path_factory, colours) -> dict[str, Path]:
    """A tiny pair of our own checkpoints with made-up weights, and the transformer as it would be published."""
    from Guided_Upsample.models.config import DISCRIMINATOR, GeneratorConfig
    from Transformer.models.config import GPTConfig
    folder = tmp_path_factory.mktemp('tiny')
    shape = GPTConfig(n_layer=2, n_embd=16, n_head=2, prior_size=8, vocab_size=len(colours), GELU_2=True)
    weights = made_up(shape.shapes(), 7)
    paths = {name: folder / f'{name}.ckpt' for name in ('transformer', 'published', 'generator', 'discriminator')}
    checkpoint.write(paths['transformer'], weights, {'network': 'Transformer', 'architecture': shape.metadata()},
                     colours)
    from mindspore import Tensor, save_checkpoint
    mask = {f'blocks.{i}.attn.mask': np.ones((1, 1, 64, 64), np.float32) for i in range(2)}
    save_checkpoint([{'name': k, 'data': Tensor(v)} for k, v in (weights | mask).items()], str(paths['published']))
    generator = GeneratorConfig(residual_blocks=1, base_channels=4)
    checkpoint.write(paths['generator'], made_up(generator.shapes(), 7),
                     {'network': 'Generator', 'architecture': generator.metadata()}, colours)
    checkpoint.write(paths['discriminator'], made_up(DISCRIMINATOR, 17), {'network': 'Discriminator'})
    paths['kmeans'] = folder / 'kmeans.npy'
    np.save(paths['kmeans'], colours)
    return paths


def free_port() -> int:
    with socket.create_server(('127.0.0.1', 0)) as probe:
        return probe.getsockname()[1]


def photograph(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth coloured picture with some texture: (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = sum(np.sin(2 * np.pi * (rng.uniform(-3, 3) * x + rng.uniform(-3, 3) * y)[..., None] + rng.uniform(0, 6, 3))
                for _ in range(4))
    return (127 + 28 * waves + rng.normal(0, 4, (height, width, 3))).clip(0, 255).astype(np.uint8)


@pytest.fixture
def folders(tmp_path) -> dict[str, Path]:
    """Three pictures of different shapes and their masks in folders."""
    from PIL import Image
    place = {'images': tmp_path / 'images', 'masks': tmp_path / 'masks', 'save': tmp_path / 'save'}
    place['images'].mkdir()
    place['masks'].mkdir()
    for i, (height, width) in enumerate(((48, 64), (64, 64), (70, 40))):
        Image.fromarray(photograph(i, height, width)).save(place['images'] / f'p{i}.png')
        mask = np.zeros((height, width), np.uint8)
        mask[height // 3:height // 2, width // 4:3 * width // 4] = 255
        mask[:, width // 2] = 255
        Image.fromarray(mask).save(place['masks'] / f'p{i}.png')
    return place


def command(script: str, *argv: object, cwd: Path | None = None, **more) -> subprocess.CompletedProcess:
    """Run one of the project's scripts as a user would."""
    return subprocess.run([sys.executable, str(ROOT / script), *map(str, argv)], cwd=cwd, capture_output=True,
                          text=True, timeout=300, **more)


def module(name: str, *argv: object, **more) -> subprocess.CompletedProcess:
    """Run ``python -m name`` from the repository root."""
    return subprocess.run([sys.executable, '-m', name, *map(str, argv)], cwd=ROOT, capture_output=True, text=True,
                          timeout=300, **more)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}
