"""What stage 2's networks are built from and trained with; needs no MindSpore, so that files are checked first."""
from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ict.checkpoint import Checkpoint, check, read
from ict.errors import UserError
from ict.training.losses import Loss

# The generator's losses: each is a function of that name in loss.py and an entry here.
LOSSES = (
    Loss('l1', 'l1_loss_weight', 1.0, 'the mean absolute error, divided by the share of the hole'),
    Loss('adv', 'inpaint_adv_loss_weight', 0.1, "the discriminator's verdict", 'discriminator'),
    Loss('content', 'content_loss_weight', 0.1, 'the differences between VGG19 features', 'vgg'),
    Loss('style', 'style_loss_weight', 250.0, 'the differences between Gram matrices of VGG19 features', 'vgg'),
)

STRUCTURED_CHANNELS = 30  # base_channels that the structured start needs at least
PADDINGS = ('symmetric', 'reflect')
DISCRIMINATOR = {'conv1.0.weight': (64, 3, 4, 4), 'conv2.0.weight': (128, 64, 4, 4),
                 'conv3.0.weight': (256, 128, 4, 4), 'conv4.0.weight': (512, 256, 4, 4), 'conv5.weight': (1, 512, 4, 4)}
VGG_URL = 'https://download.mindspore.cn/vision/ict/VGG19.ckpt'
_VGG_BUNDLED = Path(__file__).resolve().parents[2] / 'ckpts_ICT' / 'VGG19.ckpt'


@dataclass(frozen=True)
class GeneratorConfig:
    """What ``Generator`` is built from."""

    residual_blocks: int = 8
    base_channels: int = 64
    padding: str = 'symmetric'

    @classmethod
    def from_checkpoint(cls, ckpt: Checkpoint, flags: dict[str, Any]) -> GeneratorConfig:
        """The generator that a checkpoint's shapes and metadata tell, checked in every key and shape.

        Args:
            flags: what the user passed (others None): residual_blocks, base_channels, padding.

        Raises:
            UserError: a flag contradicts the checkpoint, or its shapes fit no generator.
        """
        blocks = {int(m[1]) for name in ckpt.entries if (m := re.match(r'middle\.(\d+)\.', name))}
        told = {'residual_blocks': len(blocks), 'base_channels': ckpt.shape('encoder.1.weight')[0]}
        if recorded := ckpt.metadata.get('architecture', {}).get('padding'):
            told['padding'] = recorded
        config = cls(**ckpt.merged(told, flags))
        if config.padding not in PADDINGS:
            raise UserError(f'{ckpt.path}: its padding {config.padding!r} is neither of {PADDINGS}')
        check(ckpt, config.shapes())
        return config

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


def find_vgg(given: str) -> Checkpoint:
    """The VGG19 checkpoint: ``--vgg_path``, else ./VGG19.ckpt, else ckpts_ICT/VGG19.ckpt.

    Raises:
        UserError: there is none; says where it is published and how to train without.
    """
    path = Path(given) if given else next((p for p in (Path('VGG19.ckpt'), _VGG_BUNDLED) if p.is_file()), None)
    if path is None or not os.path.isfile(path):
        without = ' '.join(f'--{loss.option} 0' for loss in LOSSES if loss.network == 'vgg')
        raise UserError(f'--vgg_path {given or _VGG_BUNDLED}: no VGG19 checkpoint; it is published at {VGG_URL} '
                        f'(python ckpts_ICT/download.py VGG19), or train without: {without}')
    return read(path, '--vgg_path').expect('VGG19', '--vgg_path')
