"""The trained generator as a plain function of pictures."""
from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import nn

from Guided_Upsample.datasets.dataset import as_network_input
from Guided_Upsample.models.architecture import Architecture
from Guided_Upsample.models.networks import Generator
from ict import checkpoint as checkpoints
from ict import optimizers


def load(found: checkpoints.Checkpoint, shape: Architecture) -> Generator:
    """The generator with a checkpoint's weights; they are in memory once."""
    with nn.utils.no_init_parameters():
        net = Generator(shape.residual_blocks, shape.base_channels, shape.padding)
    checkpoints.load_into(net, found)
    net.set_train(False)
    return net


class Painter:
    """Paints holes: 8-bit pictures in, completed float pictures out; known pixels stay what they are.

    The compiled shape is fixed: a short batch is filled up and cut again.
    """

    def __init__(self, generator: Generator, batch_size: int, amp_level: str = 'O0') -> None:
        self.generator, self.batch = optimizers.mixed_precision(generator, amp_level), batch_size

    def __call__(self, images: np.ndarray, priors: np.ndarray, holes: np.ndarray) -> np.ndarray:
        """images, priors (B, S, S, 3) uint8, holes (B, S, S) bool -> (B, S, S, 3) float32 in [0, 1]."""
        painted = self.everywhere(images, priors, holes)
        return np.where(holes[..., None], painted, images / np.float32(255))

    def everywhere(self, images: np.ndarray, priors: np.ndarray, holes: np.ndarray) -> np.ndarray:
        """The same before known pixels are put back."""
        count = len(images)
        part = np.arange(self.batch) % count
        inputs = as_network_input(images[part], priors[part], holes[part])
        training = self.generator.training
        self.generator.set_train(False)
        output = self.generator(*[ms.Tensor(x) for x in inputs]).asnumpy()[:count].astype(np.float32, copy=False)
        self.generator.set_train(training)
        return output.transpose(0, 2, 3, 1)
