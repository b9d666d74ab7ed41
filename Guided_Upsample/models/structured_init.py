"""The structured start of the generator's weights (``--init structured``)."""
from __future__ import annotations

from itertools import product

import mindspore as ms
import numpy as np

from Guided_Upsample.models.config import STRUCTURED_CHANNELS
from Guided_Upsample.models.networks import Generator

# The output's tanh is undone by straight lines between these values; found by minimising the mean error (0.6 levels).
_KNOTS = np.array([0.0, 0.082, 0.153, 0.243, 0.353, 0.643, 0.742, 0.804, 0.869, 0.925])
_SHARP = 64.0
_REACH, _STRIDE = 4.0, 1.8  # of a diffusion step: how far it looks in pixels, how far it goes (over-relaxed)
_PIXELS = list(product(range(2), range(2)))  # (y, x) in a block of 2 x 2
_SIGNS = ((1, 0), (-1, 48))  # of a difference, and the first channel of that part

Weights = dict[str, np.ndarray]


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
    weights = {}
    for parameter in net.get_parameters():
        parameter.init_data()
        weights[parameter.name] = parameter.asnumpy().astype(np.float64)
    _set_encoder(weights)
    for number in range(len(net.middle)):
        _set_block(weights, f'middle.{number}.conv_block', 4 * net.base_channels)
    _set_decoder(weights)
    for parameter in net.get_parameters():
        parameter.set_data(ms.Tensor(weights[parameter.name].astype(np.float32)))


def _cleared(weights: Weights, name: str, channels: int, axis: int = 0) -> np.ndarray:
    """A layer's weights, with the first so many output channels set to 0; a view."""
    weight = weights[f'{name}.weight']
    weight.swapaxes(0, axis)[:channels] = 0
    return weight


def _set_encoder(weights: Weights) -> None:
    # Full size: masked picture (channels 0 to 2), prior (3 to 5), hole (6).
    weight = _cleared(weights, 'encoder.1', 7)
    weight[range(6), range(6), 3, 3] = 1
    weight[6, :3, 3, 3] = _SHARP
    weights['encoder.1.bias'][6] = 1 - 3 * _SHARP

    # Half size: known pixels, 3 colours of 4 (0 to 11); hole (12 to 15); prior (16 to 18).
    weight = _cleared(weights, 'encoder.3', 19)
    for number, (y, x) in enumerate(_PIXELS):
        for k in range(3):
            weight[4 * k + number, [k, 6], 1 + y, 1 + x] = 1, -1
            weight[16 + k, 3 + k, 1 + y, 1 + x] = 1 / 4
        weight[12 + number, 6, 1 + y, 1 + x] = 1

    # Quarter size: difference above 0, 3 colours of 16 (0 to 47), below 0 (48 to 95); hole (96 to 111); prior (112 on).
    weight = _cleared(weights, 'encoder.5', 115)
    for (y, x), (sub_y, sub_x) in product(_PIXELS, _PIXELS):
        pixel, number = 4 * (2 * y + sub_y) + 2 * x + sub_x, 2 * sub_y + sub_x
        for k in range(3):
            for sign, first in _SIGNS:
                weight[first + 16 * k + pixel, 4 * k + number, 1 + y, 1 + x] = sign
                weight[first + 16 * k + pixel, 16 + k, 1:3, 1:3] = -sign / 4
                weight[first + 16 * k + pixel, 12 + number, 1 + y, 1 + x] = -2  # nothing in the hole
            weight[112 + k, 16 + k, 1 + y, 1 + x] = 1 / 4
        weight[96 + pixel, 12 + number, 1 + y, 1 + x] = 1


def _set_block(weights: Weights, name: str, channels: int) -> None:
    # One step of diffusion, in the hole alone.
    weight = _cleared(weights, f'{name}.1', 96)
    same = np.eye(16).reshape(16, 16, 1, 1) * np.pad([[1.0]], 1)  # (16, 16, 3, 3), each pixel from itself
    step = _STRIDE * (_neighbours() - same)
    for sign, first in _SIGNS:
        for k in range(3):
            rows = slice(first + 16 * k, first + 16 * k + 16)
            weight[rows, 16 * k:16 * k + 16] = sign * step
            weight[rows, 48 + 16 * k:64 + 16 * k] = -sign * step
            weight[rows, 96:112] = 2 * same
    weights[f'{name}.1.bias'][:96] = -2

    # Its positive part minus its negative part, added to the difference.
    weight = _cleared(weights, f'{name}.4', channels)
    weight[range(48), range(48), 1, 1] = 1
    weight[range(48), range(48, 96), 1, 1] = -1


def _set_decoder(weights: Weights) -> None:
    # Half size: difference and prior added, 3 colours of 4 pixels.
    weight = _cleared(weights, 'decoder.0', 12, 1)
    for number, (sub_y, sub_x) in enumerate(_PIXELS):
        for k in range(3):
            weight[112 + k, 4 * k + number, 1:3, 1:3] = 1
            for y, x in _PIXELS:
                pixel = 16 * k + 4 * (2 * y + sub_y) + 2 * x + sub_x
                weight[[pixel, 48 + pixel], 4 * k + number, 1 + y, 1 + x] = 1, -1

    # Full size: the inverse of the final tanh as a sum of ramps, one from each knot.
    edges = np.append(_KNOTS, 1.0)
    wanted = np.arctanh(2 * np.clip(edges, 0.017, 0.983) - 1)
    bends = np.diff(np.diff(wanted) / np.diff(edges), prepend=0)
    weight = _cleared(weights, 'decoder.2', STRUCTURED_CHANNELS, 1)
    last = _cleared(weights, 'decoder.5', 3)
    for k in range(3):
        ramps = slice(k * len(_KNOTS), (k + 1) * len(_KNOTS))
        for number, (y, x) in enumerate(_PIXELS):
            weight[4 * k + number, ramps, 1 + y, 1 + x] = 1
        weights['decoder.2.bias'][ramps] = -_KNOTS
        last[k, ramps, 3, 3] = bends
        weights['decoder.5.bias'][k] = wanted[0]


def _neighbours() -> np.ndarray:
    """(16, 16, 3, 3): what each of a position's 16 pixels takes from those in 3 x 3 positions, two positions apart."""
    away = np.array([-8, 0, 8])[:, None] + np.arange(4) - np.arange(4)[:, None, None]  # (4 to, 3, 4 from)
    distance = np.hypot(away[:, None, :, None, :, None], away[None, :, None, :, None, :])  # (4, 4, 3, 3, 4, 4)
    share = np.where(distance > 0, np.exp(-distance / _REACH), 0.0).reshape(16, 3, 3, 16)
    return (share / share.sum((1, 2, 3), keepdims=True)).transpose(0, 3, 1, 2)
