"""The trained generator as a function of pictures."""
from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import amp, nn

from Guided_Upsample.datasets.dataset import as_network_input
from Guided_Upsample.models.config import GeneratorConfig
from Guided_Upsample.models.networks import Generator
from ict import checkpoint


class Inpainter:
    """Paints holes: 8-bit pictures in, completed float pictures out.

    Args:
        batch_size: pictures in one forward pass, the compiled shape. More than one fills a GPU; on a CPU it gains
            nothing and would round differently.
    """

    def __init__(self, generator: Generator, batch_size: int, amp_level: str = 'O0') -> None:
        self.generator, self.batch_size = amp.auto_mixed_precision(generator, amp_level), batch_size
        net = self.generator

        @ms.jit  # under msrun a cell that is called by itself would bring back the weights of its first call
        def forward(images: ms.Tensor, edges: ms.Tensor, masks: ms.Tensor) -> ms.Tensor:
            return net(images, edges, masks)

        self.forward = forward

    @classmethod
    def from_checkpoint(cls, weights: checkpoint.Checkpoint, config: GeneratorConfig, batch_size: int,
                        amp_level: str = 'O0') -> Inpainter:
        """The generator with a checkpoint's weights, which are in memory once."""
        with nn.utils.no_init_parameters():
            net = Generator(config.residual_blocks, config.base_channels, config.padding)
        checkpoint.load_into(net, weights)
        net.set_train(False)
        return cls(net, batch_size, amp_level)

    def __call__(self, images: np.ndarray, priors: np.ndarray, holes: np.ndarray) -> np.ndarray:
        """images, priors (B, S, S, 3) uint8, holes (B, S, S) bool -> (B, S, S, 3) float32 in [0, 1].

        Known pixels stay what they are.
        """
        return np.where(holes[..., None], self.everywhere(images, priors, holes), images / np.float32(255))

    def everywhere(self, images: np.ndarray, priors: np.ndarray, holes: np.ndarray) -> np.ndarray:
        """The generator's output: the same before known pixels are put back."""
        inputs = as_network_input(images, priors, holes)
        outputs = []
        for start in range(0, len(images), self.batch_size):
            count = min(self.batch_size, len(images) - start)
            part = start + np.arange(self.batch_size) % count  # a short batch is filled up and cut again
            output = self.forward(*[ms.Tensor(x[part]) for x in inputs])
            outputs.append(output.asnumpy()[:count].astype(np.float32, copy=False))
        return np.concatenate(outputs).transpose(0, 2, 3, 1)
