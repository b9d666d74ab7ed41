"""What the tests of the converter share."""
from __future__ import annotations

import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ckpts_ICT import convert
from ict import checkpoint
from tests.conftest import made_up, names, parity
from Transformer.models import config as transformers
from Transformer.models import predict

TOLERANCE = 2e-4
SCALES = ('ln1.weight', 'ln2.weight', 'ln_f.weight')  # PyTorch's names of what MindSpore calls gamma
VGG = {'relu1_1.0': 0, 'relu1_2.0': 2, 'relu2_1.1': 5, 'relu2_2.0': 7, 'relu3_1.1': 10, 'relu3_2.0': 12,
       'relu3_3.0': 14, 'relu3_4.0': 16, 'relu4_1.1': 19, 'relu4_2.0': 21, 'relu4_3.0': 23, 'relu4_4.0': 25,
       'relu5_1.1': 28, 'relu5_2.0': 30, 'relu5_3.0': 32, 'relu5_4.0': 34}  # torchvision's table of layers


def pytorch(network: str) -> dict[str, np.ndarray]:
    """A PyTorch dictionary with the parity weights and everything else that such a file holds."""
    shapes = names('names_pytorch.json')[network]
    arrays = made_up(shapes, 17 if network == 'discriminator' else 7, SCALES)
    arrays |= {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if name not in arrays}
    if network == 'discriminator':
        for name, values in parity('pytorch_upsample.npz').items():
            if name.startswith('conv'):
                stem, part = name.split('_0_')
                arrays[f'{stem}.0.{part}'] = values
    return arrays


class Tensor:
    """Stands in for torch.Tensor."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def detach(self):
        return self

    def to(self, dtype):
        return Tensor(self.values.astype(dtype))

    def numpy(self):
        return self.values


@pytest.fixture
def pth(tmp_path, monkeypatch):
    """Writes a file that begins like PyTorch's, and a torch that finds ``content`` in it, in safe mode only."""
    kept = {}

    def load(path, map_location, weights_only, mmap):
        assert (map_location, weights_only, mmap) == ('cpu', True, True)
        return kept[Path(path)]

    torch = types.SimpleNamespace(__version__='2.13.0+cpu', load=load, Tensor=Tensor, float32=np.float32)
    monkeypatch.setitem(sys.modules, 'torch', torch)

    def make(content, name: str = 'in.pth') -> Path:
        path = tmp_path / name
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('archive/version', '3')
        kept[path] = content
        return path

    return make


def tensors(arrays: dict[str, np.ndarray], prefix: str = '') -> dict[str, Tensor]:
    return {prefix + name: Tensor(values) for name, values in arrays.items()}


@pytest.fixture
def kmeans(tmp_path, colours) -> Path:
    """A palette for the 64 tokens of the parity transformer."""
    np.save(tmp_path / 'kmeans64.npy', colours[:64])
    return tmp_path / 'kmeans64.npy'


@pytest.fixture
def published_row(monkeypatch):
    """Makes the tiny 'published' transformer one of the published models."""
    monkeypatch.setattr(transformers, 'PUBLISHED', {(2, 16, 8): ('Tiny', 2, True)})


def run(*argv: object) -> int:
    return convert.main([str(a) for a in argv])


def logits_of(path: Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    found = checkpoint.read(path)
    model = predict.Predictor.from_checkpoint(found, transformers.GPTConfig.from_checkpoint(found, {}), 1, 'none')
    return model.logits_at(arrays['idx'], arrays['masks'], np.tile(np.arange(64), (2, 1)))
