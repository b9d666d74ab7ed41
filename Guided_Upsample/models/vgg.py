"""VGG19's feature maps, for the content and style losses; fed with values in [0, 1], as published."""
from __future__ import annotations

import mindspore as ms
from mindspore import nn

from ict import checkpoint

# Convolutions of each stage; every stage but the first begins with a 2 x 2 max pooling.
STAGES = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))


class VGG19(nn.Cell):
    """The sixteen convolutions of VGG19; ``construct`` returns all sixteen feature maps, relu1_1 ... relu5_4."""

    def __init__(self) -> None:
        super().__init__()
        before, self.layers = 3, []
        for stage, (channels, count) in enumerate(STAGES, 1):
            for i in range(1, count + 1):
                conv = nn.Conv2d(before, channels, 3, stride=1, pad_mode='pad', padding=1, has_bias=True,
                                 weight_init='zeros', bias_init='zeros')
                cells = [nn.MaxPool2d(2, stride=2, pad_mode='valid')] if i == 1 and stage > 1 else []
                self.layers.append(nn.SequentialCell([*cells, conv, nn.ReLU()]))
                setattr(self, f'relu{stage}_{i}', self.layers[-1])
                before = channels

    def construct(self, x: ms.Tensor) -> tuple[ms.Tensor, ...]:
        """x (B, 3, H, W) in [0, 1] -> sixteen maps (B, channels, H / 2^(s - 1), W / 2^(s - 1)), s = 1 ... 5."""
        maps: tuple[ms.Tensor, ...] = ()
        for layer in self.layers:
            x = layer(x)
            maps = (*maps, x)
        return maps


def load(weights: checkpoint.Checkpoint) -> VGG19:
    """The network with these weights, frozen."""
    net = VGG19()
    checkpoint.load_into(net, weights)
    net.set_train(False)
    for parameter in net.get_parameters():
        parameter.requires_grad = False
    return net
