"""What each stage's table of losses holds; the tables are in the stages' ``models/config.py``."""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Loss:
    """One term of a network's loss.

    Attributes:
        name: of its function in the stage's ``models/loss.py``, and of its column in the log.
        option: the command-line option of its weight; '' when the weight is fixed.
        weight: the default, or the fixed weight.
        help: what it measures, for ``--help``.
        network: the further network that the function needs, 'discriminator' or 'vgg'; with weight 0 such a loss is
            not computed. '': none, and the loss is in the log whatever its weight.
    """

    name: str
    option: str = ''
    weight: float = 1.0
    help: str = ''
    network: str = ''


def weights_of(losses: Sequence[Loss], args: argparse.Namespace | None = None) -> dict[str, float]:
    """The weight of each loss, by its name, in the order of the table: that of the options, else the default."""
    return {loss.name: getattr(args, loss.option, loss.weight) for loss in losses}


def is_computed(loss: Loss, weights: dict[str, float]) -> bool:
    """Whether a training step computes this loss."""
    return not loss.network or weights[loss.name] > 0


def networks_needed(losses: Sequence[Loss], weights: dict[str, float]) -> set[str]:
    """The further networks that the losses need."""
    return {loss.network for loss in losses if loss.network and is_computed(loss, weights)}
