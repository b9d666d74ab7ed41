"""What both inference scripts and run.py are told: pictures, output, computation."""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ict import options
from ict.runs import inputs


class Given(NamedTuple):
    """A value and the option that gave it, so that error lines name what the user typed."""

    value: Any
    option: str

    def __str__(self) -> str:
        return f'{self.option} {self.value}'


class Paths(NamedTuple):
    """The values of the options that each script calls otherwise."""

    ckpt: Given
    images: Given
    masks: Given
    output: Given
    n_results: Given

    @classmethod
    def from_args(cls, args: argparse.Namespace, names: Sequence[str]) -> Paths:
        """From parsed options, which are called ``names`` in this order."""
        return cls(*[Given(getattr(args, name), f'--{name}') for name in names])


@dataclass(frozen=True)
class ViewFlags:
    """How pictures and masks are to be seen; None where the user leaves it open."""

    mask_mode: str | None = None
    geometry: str | None = None
    invert_mask: bool = False
    dilate: int = 0
    max_pixels: int = 0
    allow_truncated: bool = False


@dataclass(frozen=True)
class SourceConfig:
    """Where the pictures and masks are; ``skip``: folders that are not searched."""

    images: Given
    masks: Given
    view: ViewFlags
    skip: tuple[str, ...] = ()

    def find(self, *further: str) -> inputs.Inputs:
        """List and pair pictures and masks; ``skip`` and the ``further`` folders are never searched."""
        return inputs.find(*self.images, *self.masks, self.view.max_pixels, *filter(None, (*self.skip, *further)),
                           allow_truncated=self.view.allow_truncated)


@dataclass(frozen=True)
class OutputConfig:
    """Where results go and how many there are of each picture."""

    folder: Given
    n_results: Given
    overwrite: bool = False


@dataclass(frozen=True)
class ComputeConfig:
    """How it is computed."""

    batch_size: int = 1
    amp_level: str = 'O0'
    device_target: str | None = None
    device_id: int = 0
    distributed: bool = False


def add_compute(parser: Any) -> None:
    """The options of ``ComputeConfig`` but for ``distributed``."""
    options.add_device(parser)
    parser.add_argument('--batch_size', type=int, default=1, help='pictures in one forward pass (on a CPU one after '
                                                                  'another, which is as fast); changes no result')
    parser.add_argument('--amp_level', choices=('O0', 'O2', 'O3'), default='O0', help='O2, O3: float16 on a GPU')


def add_distributed(parser: Any) -> None:
    """--distributed."""
    options.add_flag(parser, '--distributed', 'one process of several started by msrun, which share the images')
