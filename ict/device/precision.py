"""MindSpore's mixed precision."""
from __future__ import annotations

from mindspore import amp, nn


def mixed_precision(net: nn.Cell, level: str) -> nn.Cell:
    """``net`` in MindSpore's mixed precision: O0 all float32, O2 float16 but for the norms, O3 all float16."""
    return net if level == 'O0' else amp.auto_mixed_precision(net, level)
