"""The guided upsampler's generator and discriminator (paper, section 3.2).

Parameter names and shapes are those of the published MindSpore checkpoints.
"""
from __future__ import annotations

from itertools import product

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from Guided_Upsample.models.config import STRUCTURED_CHANNELS
from ict.initializers import Normal

LEAKY_SLOPE = 0.2
INITIAL_SIGMA = 0.02


def _conv(rng: np.random.Generator, n_in: int, n_out: int, kernel: int, stride: int = 1, padding: int = 0,
          dilation: int = 1, has_bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, kernel, stride=stride, pad_mode='pad', padding=padding, dilation=dilation,
                     has_bias=has_bias, weight_init=Normal(rng, INITIAL_SIGMA), bias_init='zeros')


def _up(rng: np.random.Generator, n_in: int, n_out: int) -> nn.Conv2dTranspose:
    return nn.Conv2dTranspose(n_in, n_out, 4, stride=2, pad_mode='pad', padding=1, has_bias=True,
                              weight_init=Normal(rng, INITIAL_SIGMA), bias_init='zeros')


class ConvToFew(nn.Conv2d):
    """nn.Conv2d (stride 1, no padding, bias) to a few channels, four times as fast on a CPU.

    MindSpore's CPU kernel unfolds k * k copies of the input for a matrix product that has only ``out_channels`` rows.
    So each row of the kernel by itself (k copies, k * out_channels rows), then the k results, shifted, are summed up.
    Equal to rounding.
    """

    def __init__(self, rng: np.random.Generator, n_in: int, n_out: int, kernel: int) -> None:
        super().__init__(n_in, n_out, kernel, pad_mode='valid', has_bias=True,
                         weight_init=Normal(rng, INITIAL_SIGMA), bias_init='zeros')
        rows = np.eye(kernel * n_out, dtype=np.float32).reshape(kernel, n_out, kernel * n_out)
        self.sum_of_rows = ms.Tensor(rows.transpose(1, 2, 0)[..., None])  # (n_out, kernel * n_out, kernel, 1)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """(B, n_in, H, W) -> (B, n_out, H - k + 1, W - k + 1)."""
        n_out, n_in, kernel, _ = self.weight.shape
        rows = self.weight.transpose(2, 0, 1, 3).reshape(kernel * n_out, n_in, 1, kernel)
        x = ops.conv2d(x, rows.astype(x.dtype))  # (B, k * n_out, H, W - k + 1)
        return ops.conv2d(x, self.sum_of_rows.astype(x.dtype)) + self.bias.astype(x.dtype).reshape(1, -1, 1, 1)


def _mirror(width: int, mode: str) -> nn.Pad:
    """Padding by mirrored pixels: 'REFLECT' leaves the edge pixel out of the mirror, 'SYMMETRIC' repeats it."""
    return nn.Pad(((0, 0), (0, 0), (width, width), (width, width)), mode=mode)


class ResidualBlock(nn.Cell):
    """``x + conv(pad(relu(dilated conv(pad(x)))))``, without normalisation."""

    def __init__(self, channels: int, padding: str, rng: np.random.Generator) -> None:
        super().__init__()
        self.conv_block = nn.SequentialCell(
            _mirror(2, 'REFLECT'), _conv(rng, channels, channels, 3, dilation=2), nn.ReLU(),
            _mirror(1, padding.upper()), _conv(rng, channels, channels, 3))

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return x + self.conv_block(x)


class Generator(nn.Cell):
    """Paints the hole of a picture, guided by the enlarged prior.

    Args:
        residual_blocks: blocks in the middle.
        base_channels: channels of the first layer.
        padding: second pad of a residual block: 'symmetric' (published MindSpore) or 'reflect' (PyTorch original).
        rng: where the initial weights come from, normal(0, 0.02); biases are zero.
    """

    def __init__(self, residual_blocks: int = 8, base_channels: int = 64, padding: str = 'symmetric', *,
                 rng: np.random.Generator | None = None) -> None:
        super().__init__()
        if padding not in ('symmetric', 'reflect'):
            raise ValueError(f"padding {padding!r} is neither 'symmetric' nor 'reflect'")
        rng = np.random.default_rng(0) if rng is None else rng
        self.base_channels = c = base_channels
        self.encoder = nn.SequentialCell(
            _mirror(3, 'REFLECT'), _conv(rng, 6, c, 7), nn.ReLU(),
            _conv(rng, c, 2 * c, 4, stride=2, padding=1), nn.ReLU(),
            _conv(rng, 2 * c, 4 * c, 4, stride=2, padding=1), nn.ReLU())
        self.middle = nn.SequentialCell([ResidualBlock(4 * c, padding, rng) for _ in range(residual_blocks)])
        self.decoder = nn.SequentialCell(
            _up(rng, 4 * c, 2 * c), nn.ReLU(), _up(rng, 2 * c, c), nn.ReLU(),
            _mirror(3, 'REFLECT'), ConvToFew(rng, c, 3, 7))

    def construct(self, images: ms.Tensor, edges: ms.Tensor, masks: ms.Tensor) -> ms.Tensor:
        """images (B, 3, H, W), edges = priors (B, 3, H, W), masks (B, 1 | 3, H, W), 1 = hole, all in [0, 1].

        Returns:
            (B, 3, H, W) in [0, 1], painted everywhere; H and W are multiples of 4.
        """
        masked = images * (1.0 - masks) + masks  # (B, 3, H, W)
        x = self.encoder(ops.concat((masked, edges), 1))  # (B, 4c, H / 4, W / 4)
        x = self.decoder(self.middle(x))  # (B, 3, H, W)
        return (ops.tanh(x) + 1.0) / 2.0


# The output's tanh is undone by straight lines between these values; found by minimising the mean error (0.6 levels).
_KNOTS = np.array([0.0, 0.082, 0.153, 0.243, 0.353, 0.643, 0.742, 0.804, 0.869, 0.925])
_SHARP = 64.0
_REACH, _STRIDE = 4.0, 1.8  # of a diffusion step: how far it looks in pixels, how far it goes (over-relaxed)


def start_structured(net: Generator) -> None:
    """Start as a network that already paints the enlarged prior, shifted towards the pixels around (--init structured).

    The encoder finds the hole (pure white in the masked picture) and packs the difference between known pixels and
    prior, 16 pixels of 3 colours in a position at a quarter of the size, positive and negative part by themselves.
    Each residual block is one step of diffusion of that difference into the hole. The decoder adds the prior, unpacks,
    and undoes the final tanh piece by piece. All other channels keep their published start and reach the output
    through weights that start at 0. It wants a low learning rate at first: Adam's first steps move every weight alike.

    Args:
        net: of ``STRUCTURED_CHANNELS`` base channels or more.
    """
    values = {}
    for parameter in net.get_parameters():
        parameter.init_data()
        values[parameter.name] = parameter.asnumpy().astype(np.float64)

    def part(name: str, channels: int, axis: int = 0) -> np.ndarray:
        """A layer's weights, with the first so many output channels cleared."""
        weight = values[f'{name}.weight']
        weight.swapaxes(0, axis)[:channels] = 0
        return weight

    halves = list(product(range(2), range(2)))  # (y, x) of a pixel in a block of 2 x 2

    weight = part('encoder.1', 7)  # masked picture, prior, hole
    weight[range(6), range(6), 3, 3] = 1
    weight[6, :3, 3, 3] = _SHARP
    values['encoder.1.bias'][6] = 1 - 3 * _SHARP

    weight = part('encoder.3', 19)  # known pixels: 3 colours of 4; hole: 4; prior: 3
    for number, (y, x) in enumerate(halves):
        for k in range(3):
            weight[4 * k + number, [k, 6], 1 + y, 1 + x] = 1, -1
            weight[16 + k, 3 + k, 1 + y, 1 + x] = 1 / 4
        weight[12 + number, 6, 1 + y, 1 + x] = 1

    weight = part('encoder.5', 115)  # difference: above 0: 3 colours of 16, below: the same; hole: 16; prior: 3
    for (y, x), (sub_y, sub_x) in product(halves, halves):
        pixel, number = 4 * (2 * y + sub_y) + 2 * x + sub_x, 2 * sub_y + sub_x
        for k in range(3):
            for sign, first in ((1, 0), (-1, 48)):
                weight[first + 16 * k + pixel, 4 * k + number, 1 + y, 1 + x] = sign
                weight[first + 16 * k + pixel, 16 + k, 1:3, 1:3] = -sign / 4
                weight[first + 16 * k + pixel, 12 + number, 1 + y, 1 + x] = -2  # nothing in the hole
            weight[112 + k, 16 + k, 1 + y, 1 + x] = 1 / 4
        weight[96 + pixel, 12 + number, 1 + y, 1 + x] = 1

    step = _STRIDE * (_neighbours() - np.eye(16).reshape(16, 16, 1, 1) * _centre())  # (16, 16, 3, 3)
    for number in range(len(net.middle)):
        weight = part(f'middle.{number}.conv_block.1', 96)
        for sign, first in ((1, 0), (-1, 48)):
            for k in range(3):
                rows = slice(first + 16 * k, first + 16 * k + 16)
                weight[rows, 16 * k:16 * k + 16] = sign * step
                weight[rows, 48 + 16 * k:64 + 16 * k] = -sign * step
                weight[rows, 96:112] = 2 * np.eye(16).reshape(16, 16, 1, 1) * _centre()  # in the hole alone
        values[f'middle.{number}.conv_block.1.bias'][:96] = -2
        weight = part(f'middle.{number}.conv_block.4', 4 * net.base_channels)
        weight[range(48), range(48), 1, 1] = 1
        weight[range(48), range(48, 96), 1, 1] = -1

    weight = part('decoder.0', 12, 1)  # 3 colours of 4
    for number, (sub_y, sub_x) in enumerate(halves):
        for k in range(3):
            weight[112 + k, 4 * k + number, 1:3, 1:3] = 1
            for y, x in halves:
                pixel = 16 * k + 4 * (2 * y + sub_y) + 2 * x + sub_x
                weight[[pixel, 48 + pixel], 4 * k + number, 1 + y, 1 + x] = 1, -1

    ends = np.append(_KNOTS, 1.0)
    wanted = np.arctanh(2 * np.clip(ends, 0.017, 0.983) - 1)
    bends = np.diff(np.diff(wanted) / np.diff(ends), prepend=0)
    weight = part('decoder.2', STRUCTURED_CHANNELS, 1)
    last = part('decoder.5', 3)
    for k in range(3):
        lines = slice(k * len(_KNOTS), (k + 1) * len(_KNOTS))
        for number, (y, x) in enumerate(halves):
            weight[4 * k + number, lines, 1 + y, 1 + x] = 1
        values['decoder.2.bias'][lines] = -_KNOTS
        last[k, lines, 3, 3] = bends
        values['decoder.5.bias'][k] = wanted[0]

    for parameter in net.get_parameters():
        parameter.set_data(ms.Tensor(values[parameter.name].astype(np.float32)))


def _centre() -> np.ndarray:
    """(3, 3): 1 in the middle."""
    return np.outer([0.0, 1.0, 0.0], [0.0, 1.0, 0.0])


def _neighbours() -> np.ndarray:
    """(16, 16, 3, 3): what each of a position's 16 pixels takes from those in 3 x 3 positions, two positions apart."""
    away = np.array([-8, 0, 8])[:, None] + np.arange(4) - np.arange(4)[:, None, None]  # (4 to, 3, 4 from)
    distance = np.hypot(away[:, None, :, None, :, None], away[None, :, None, :, None, :])  # (4, 4, 3, 3, 4, 4)
    share = np.where(distance > 0, np.exp(-distance / _REACH), 0.0).reshape(16, 3, 3, 16)
    return (share / share.sum((1, 2, 3), keepdims=True)).transpose(0, 3, 1, 2)


class Discriminator(nn.Cell):
    """PatchGAN: a score in (0, 1) for each patch, 1 = real."""

    def __init__(self, in_channels: int, *, rng: np.random.Generator | None = None) -> None:
        super().__init__()
        rng = np.random.default_rng(0) if rng is None else rng

        def layer(n_in: int, n_out: int, stride: int) -> nn.SequentialCell:
            return nn.SequentialCell(_conv(rng, n_in, n_out, 4, stride, 1, has_bias=False), nn.LeakyReLU(LEAKY_SLOPE))

        self.conv1 = layer(in_channels, 64, 2)
        self.conv2 = layer(64, 128, 2)
        self.conv3 = layer(128, 256, 2)
        self.conv4 = layer(256, 512, 1)
        self.conv5 = _conv(rng, 512, 1, 4, 1, 1, has_bias=False)

    def construct(self, x: ms.Tensor) -> tuple[ms.Tensor, tuple[ms.Tensor, ...]]:
        """x (B, in_channels, H, W) in [0, 1] -> score map (B, 1, H / 8 - 2, W / 8 - 2) and the five feature maps."""
        one = self.conv1(x)  # (B, 64, H / 2, W / 2)
        two = self.conv2(one)  # (B, 128, H / 4, W / 4)
        three = self.conv3(two)  # (B, 256, H / 8, W / 8)
        four = self.conv4(three)  # (B, 512, H / 8 - 1, W / 8 - 1)
        five = self.conv5(four)  # (B, 1, H / 8 - 2, W / 8 - 2)
        return ops.sigmoid(five), (one, two, three, four, five)
