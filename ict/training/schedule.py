"""The learning rate of each step."""
from __future__ import annotations

import math


def lr_at(step: int, base: float, schedule: str, warmup_steps: int, total_steps: int) -> float:
    """Learning rate of optimizer step ``step`` (from 0): linear warm-up, then constant or a cosine down to 0."""
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    if schedule == 'constant':
        return base
    passed = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return base * 0.5 * (1.0 + math.cos(math.pi * min(1.0, passed)))
