"""Finding VGG19's weights for the content and style losses; needs no MindSpore until they are loaded."""
from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ict import checkpoint
from ict.errors import UserError

if TYPE_CHECKING:
    from Guided_Upsample.models.vgg import VGG19

URL = 'https://download.mindspore.cn/vision/ict/VGG19.ckpt'
_BUNDLED = Path(__file__).resolve().parents[2] / 'ckpts_ICT' / 'VGG19.ckpt'


def find(given: str) -> checkpoint.Checkpoint:
    """``--vgg_path``, else ./VGG19.ckpt, else ckpts_ICT/VGG19.ckpt.

    Raises:
        UserError: there is none; says where it is published and how to go without.
    """
    path = Path(given) if given else next((p for p in (Path('VGG19.ckpt'), _BUNDLED) if p.is_file()), None)
    if path is None or not os.path.isfile(path):
        raise UserError(f'--vgg_path {given or _BUNDLED}: no VGG19 checkpoint; it is published at {URL} '
                        f'(python ckpts_ICT/download.py VGG19), or go without: '
                        f'--content_loss_weight 0 --style_loss_weight 0')
    return checkpoint.read(path, '--vgg_path').expect('VGG19', '--vgg_path')


def load(found: checkpoint.Checkpoint) -> VGG19:
    """The network with these weights, frozen."""
    from Guided_Upsample.models.vgg import VGG19
    net = VGG19()
    checkpoint.load_into(net, found)
    net.set_train(False)
    for parameter in net.get_parameters():
        parameter.requires_grad = False
    return net
