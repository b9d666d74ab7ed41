"""The guided upsampler's generator and discriminator (paper, section 3.2).

Parameter names and shapes are those of the published MindSpore checkpoints.
"""
from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from ict.initializers import Normal

LEAKY_SLOPE = 0.2
INITIAL_SIGMA = 0.02


def _conv(rng: np.random.Generator, n_in: int, n_out: int, kernel: int, **options: int) -> nn.Conv2d:
    """nn.Conv2d of stride 1, without padding and dilation, with a bias, where ``options`` do not say otherwise."""
    options = {'stride': 1, 'padding': 0, 'dilation': 1, 'has_bias': True} | options
    return nn.Conv2d(n_in, n_out, kernel, pad_mode='pad', weight_init=Normal(rng, INITIAL_SIGMA), bias_init='zeros',
                     **options)


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
        """(B, C, H, W) -> (B, C, H, W)."""
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


class Discriminator(nn.Cell):
    """PatchGAN: a score in (0, 1) for each patch, 1 = real."""

    def __init__(self, in_channels: int, *, rng: np.random.Generator | None = None) -> None:
        super().__init__()
        rng = np.random.default_rng(0) if rng is None else rng

        def layer(n_in: int, n_out: int, stride: int) -> nn.SequentialCell:
            return nn.SequentialCell(_conv(rng, n_in, n_out, 4, stride=stride, padding=1, has_bias=False),
                                     nn.LeakyReLU(LEAKY_SLOPE))

        self.conv1 = layer(in_channels, 64, 2)
        self.conv2 = layer(64, 128, 2)
        self.conv3 = layer(128, 256, 2)
        self.conv4 = layer(256, 512, 1)
        self.conv5 = _conv(rng, 512, 1, 4, padding=1, has_bias=False)

    def construct(self, x: ms.Tensor) -> tuple[ms.Tensor, tuple[ms.Tensor, ...]]:
        """x (B, in_channels, H, W) in [0, 1] -> score map (B, 1, H / 8 - 2, W / 8 - 2) and the five feature maps."""
        one = self.conv1(x)  # (B, 64, H / 2, W / 2)
        two = self.conv2(one)  # (B, 128, H / 4, W / 4)
        three = self.conv3(two)  # (B, 256, H / 8, W / 8)
        four = self.conv4(three)  # (B, 512, H / 8 - 1, W / 8 - 1)
        five = self.conv5(four)  # (B, 1, H / 8 - 2, W / 8 - 2)
        return ops.sigmoid(five), (one, two, three, four, five)
