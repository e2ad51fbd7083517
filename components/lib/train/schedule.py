"""Learning rate as a function of the step: linear warm-up, then constant, linear or cosine decay.

A pure function of the step has no state to save, so a resumed run cannot get it wrong.
"""

from __future__ import annotations

import math

from components.lib.train.settings.config import OptimConfig


def learning_rate(optim: OptimConfig, step: int, max_steps: int) -> float:
    """Learning rate of optimizer step ``step`` (from 0) in a run of ``max_steps``."""
    schedule, peak = optim.lr_scheduler, optim.config.lr
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    if schedule.name == "constant":
        return peak
    span = max(max_steps - schedule.warmup_steps, 1)
    progress = min((step - schedule.warmup_steps) / span, 1.0)
    if schedule.name == "cosine":
        progress = 0.5 * (1 - math.cos(math.pi * progress))
    return peak + (schedule.min_lr - peak) * progress
