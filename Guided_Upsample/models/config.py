"""Which generator a checkpoint holds; needs no MindSpore, so that files are checked first."""
from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from ict.checkpoint import Checkpoint, check
from ict.errors import UserError

STRUCTURED_CHANNELS = 30  # base_channels that the structured start needs at least
PADDINGS = ('symmetric', 'reflect')
DISCRIMINATOR = {'conv1.0.weight': (64, 3, 4, 4), 'conv2.0.weight': (128, 64, 4, 4),
                 'conv3.0.weight': (256, 128, 4, 4), 'conv4.0.weight': (512, 256, 4, 4), 'conv5.weight': (1, 512, 4, 4)}


@dataclass(frozen=True)
class Architecture:
    """What ``Generator`` is built from."""

    residual_blocks: int = 8
    base_channels: int = 64
    padding: str = 'symmetric'

    def metadata(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter."""
        c = self.base_channels
        weights = {'encoder.1': (c, 6, 7, 7), 'encoder.3': (2 * c, c, 4, 4), 'encoder.5': (4 * c, 2 * c, 4, 4),
                   'decoder.0': (4 * c, 2 * c, 4, 4), 'decoder.2': (2 * c, c, 4, 4), 'decoder.5': (3, c, 7, 7)}
        for i in range(self.residual_blocks):
            for conv in (1, 4):
                weights[f'middle.{i}.conv_block.{conv}'] = (4 * c, 4 * c, 3, 3)
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in weights.items():
            outputs = shape[1] if name in ('decoder.0', 'decoder.2') else shape[0]
            shapes |= {f'{name}.weight': shape, f'{name}.bias': (outputs,)}
        return shapes


def of(checkpoint: Checkpoint, padding: str | None) -> Architecture:
    """The generator that a checkpoint's shapes and record tell, checked in every key and shape.

    Args:
        padding: the flag, when the user passed it.

    Raises:
        UserError: the flag contradicts the checkpoint, or its shapes fit no generator.
    """
    blocks = {int(m[1]) for name in checkpoint.entries if (m := re.match(r'middle\.(\d+)\.', name))}
    recorded = checkpoint.metadata.get('architecture', {}).get('padding')
    if padding is not None and recorded is not None and padding != recorded:
        raise UserError(f'--padding {padding} contradicts {checkpoint.path}, which has {recorded}; leave the flag out')
    chosen = recorded or padding or 'symmetric'
    if chosen not in PADDINGS:
        raise UserError(f'{checkpoint.path}: its padding {chosen!r} is neither of {PADDINGS}')
    found = Architecture(len(blocks), checkpoint.shape('encoder.1.weight')[0], chosen)
    check(checkpoint, found.shapes())
    return found


GeneratorConfig = Architecture
GeneratorConfig.from_checkpoint = staticmethod(of)
