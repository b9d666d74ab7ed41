"""The learning rate of each step."""
from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up over ``warmup_steps``, then constant, or a cosine that reaches 0 at ``last_step``.

    Attributes:
        learning_rate: after the warm-up.
        kind: 'constant' or 'cosine' (``--lr_schedule``).
    """

    learning_rate: float
    kind: str
    warmup_steps: int
    last_step: int

    def at(self, step: int) -> float:
        """The learning rate of optimizer step ``step``, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.kind == 'constant':
            return self.learning_rate
        passed = (step - self.warmup_steps) / max(1, self.last_step - self.warmup_steps)
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, passed)))
