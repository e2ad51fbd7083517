"""Stops a run whose loss is NaN or explodes, before the step that would spoil the weights.

The running mean of the loss is part of the checkpoint, so a resumed run judges as the undisturbed
one would.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from components.lib.contract import UserError
from components.lib.train.parallel.gradients import local_grad
from components.lib.train.parallel.layout import local_part

WARM_UP = 20
_DECAY = 0.95


class TrainingDiverged(UserError):
    """The loss is not a number or exploded. The message says where it started."""


class LossGuard:
    """Judges each step's loss against its running mean."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.mean = 0.0
        self.seen = 0

    def state(self) -> dict[str, float]:
        """JSON for the checkpoint."""
        return {"mean": self.mean, "seen": self.seen}

    def restore(self, state: Mapping[str, float]) -> None:
        """From a checkpoint."""
        self.mean, self.seen = float(state["mean"]), int(state["seen"])

    def check(
        self,
        step: int,
        loss: float,
        norm: float,
        lr: float,
        parameters: Mapping[str, nn.Parameter],
    ) -> None:
        """Raises TrainingDiverged with a diagnosis; otherwise takes the loss into the mean."""
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise TrainingDiverged(
                f"Step {step}: the loss is {loss} and the gradient norm {norm} (lr {lr:g}). "
                f"{_culprits(parameters)} The weights of this step were not written; lower "
                "optim.config.lr, set trainer.gradient_clip_val, or look at this step's samples."
            )
        if self.seen >= WARM_UP and loss > self.factor * abs(self.mean):
            raise TrainingDiverged(
                f"Step {step}: the loss {loss:.4g} is more than {self.factor:g} times its running "
                f"mean {self.mean:.4g} (gradient norm {norm:.4g}, lr {lr:g}). Lower "
                "optim.config.lr or raise trainer.explode_factor if this is expected."
            )
        self.mean = loss if self.seen == 0 else _DECAY * self.mean + (1 - _DECAY) * loss
        self.seen += 1


def _culprits(parameters: Mapping[str, nn.Parameter]) -> str:
    """Names of the first parameters whose weights or gradients are not finite."""
    bad_weights, bad_grads = [], []
    for name, parameter in parameters.items():
        weight = local_part(parameter)
        if not bool(torch.isfinite(weight).all()):
            bad_weights.append(name)
        grad = local_grad(parameter)
        if grad is not None and not bool(torch.isfinite(grad).all()):
            bad_grads.append(name)
    if bad_weights:
        return f"Weights that are not finite on this rank: {', '.join(bad_weights[:3])}."
    if bad_grads:
        return (
            f"Gradients that are not finite on this rank: {len(bad_grads)} of {len(parameters)}, "
            f"first {', '.join(bad_grads[:3])}."
        )
    return "Weights and gradients of this rank are finite: look at the other ranks or the data."
