"""The configuration of an inference run that both stages share."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ict import options
from ict.options import Given
from ict.runs import inputs


@dataclass(frozen=True)
class ComputeConfig:
    """How it is computed; the options of the same names."""

    batch_size: int = 1
    amp_level: str = 'O0'
    device_target: str | None = None
    device_id: int = 0
    distributed: bool = False


@dataclass(frozen=True)
class RunConfig:
    """A run over files; the stages add options of their own.

    Attributes:
        n_results: of each picture.
        output: the folder of the results.
        skip: further folders that are not searched for pictures and masks.
    """

    ckpt: Given
    images: Given
    masks: Given
    output: Given
    n_results: Given
    view: inputs.ViewFlags
    compute: ComputeConfig
    overwrite: bool
    skip: tuple[str, ...]

    def find_inputs(self, *further: str) -> inputs.Inputs:
        """The pictures with their masks; the output folder, ``skip`` and ``further`` folders are not searched."""
        return inputs.find(self.images, self.masks, self.view, self.output.value,
                           *filter(None, (*self.skip, *further)))


def add_options(parser: Any, with_ranks: bool = True) -> None:
    """The options of ``ViewFlags`` and ``ComputeConfig``; ``--distributed`` where ranks may share the pictures."""
    inputs.add_options(parser)
    options.add_device(parser)
    parser.add_argument('--batch_size', type=int, default=1, help='pictures in one forward pass (on a CPU one after '
                                                                  'another, which is as fast); changes no result')
    parser.add_argument('--amp_level', choices=('O0', 'O2', 'O3'), default='O0', help='O2, O3: float16 on a GPU')
    if with_ranks:
        options.add_flag(parser, '--distributed', 'one process of several started by msrun, which share the images')
