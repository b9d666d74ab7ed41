"""The trained generator as a plain function of pictures."""
from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import nn

from Guided_Upsample.datasets.dataset import as_network_input
from Guided_Upsample.models.config import Architecture
from Guided_Upsample.models.networks import Generator
from ict import checkpoint
from ict.device import precision


def load(found: checkpoint.Checkpoint, shape: Architecture) -> Generator:
    """The generator with a checkpoint's weights; they are in memory once."""
    with nn.utils.no_init_parameters():
        net = Generator(shape.residual_blocks, shape.base_channels, shape.padding)
    checkpoint.load_into(net, found)
    net.set_train(False)
    return net


class Inpainter:
    """Paints holes: 8-bit pictures in, completed float pictures out.

    Args:
        rows: pictures in one forward pass, the compiled shape; more than one fills a GPU, and on a CPU gains nothing
            and would round differently.
    """

    def __init__(self, generator: Generator, rows: int, amp_level: str = 'O0') -> None:
        self.generator, self.rows = precision.mixed_precision(generator, amp_level), rows
        net = self.generator

        @ms.jit  # under msrun a cell that is called by itself would bring back the weights of its first call
        def forward(images: ms.Tensor, edges: ms.Tensor, masks: ms.Tensor) -> ms.Tensor:
            return net(images, edges, masks)

        self.forward = forward

    def __call__(self, images: np.ndarray, priors: np.ndarray, holes: np.ndarray) -> np.ndarray:
        """images, priors (B, S, S, 3) uint8, holes (B, S, S) bool -> (B, S, S, 3) float32 in [0, 1].

        Known pixels stay what they are.
        """
        return np.where(holes[..., None], self.everywhere(images, priors, holes), images / np.float32(255))

    def everywhere(self, images: np.ndarray, priors: np.ndarray, holes: np.ndarray) -> np.ndarray:
        """The same before known pixels are put back."""
        inputs = as_network_input(images, priors, holes)
        parts = []
        for start in range(0, len(images), self.rows):
            count = min(self.rows, len(images) - start)
            part = start + np.arange(self.rows) % count  # a short batch is filled up and cut again
            output = self.forward(*[ms.Tensor(x[part]) for x in inputs])
            parts.append(output.asnumpy()[:count].astype(np.float32, copy=False))
        return np.concatenate(parts).transpose(0, 2, 3, 1)
