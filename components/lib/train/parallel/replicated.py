"""Mixed precision for a model that each process holds whole, without FSDP.

FSDP2 handles each parameter on its own in Python, several times a step. A tokenizer has 310 small
ones: on an H200 its kernels took 24 ms of a step of 178 ms, the rest was such handling. So here is
only what is left of it without sharding, with the same arithmetic: parameters, gradients and
optimizer are fp32; forward and backward see bf16 copies, always the same tensors, made by one
kernel for all; their gradients are added to the fp32 ones in one more. Several processes average
them once a step (`gradients.average_over_replicas`). The trade-off: every GPU holds all state, and
copies and gradients stay for the whole run: 18 bytes per parameter, 2 GB for a tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from components.lib.train.torch_private import (
    foreach_add,
    foreach_copy,
    parameters_of,
    when_backward_ends,
)


class ReplicatedWeights:
    """Low-precision copies that stand in for a model's parameters while it computes."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self.cast = False
        self._places: list[tuple[dict[str, nn.Parameter | None], str]] = []
        self._masters: list[nn.Parameter] = []
        self._copies: list[nn.Parameter] = []
        self._totals: list[Tensor] = []
        for module in model.modules():
            for name, master in module.named_parameters(recurse=False):
                copy = nn.Parameter(torch.empty_like(master, dtype=dtype), master.requires_grad)
                self._places.append((parameters_of(module), name))
                self._masters.append(master)
                self._copies.append(copy)
                self._totals.append(torch.empty_like(master))

    def cast_in(self) -> None:
        """Put up-to-date copies in the place of the parameters."""
        with torch.no_grad():
            foreach_copy(list[Tensor](self._copies), list[Tensor](self._masters))
        self._place(self._copies)
        self.cast = True

    def cast_out(self) -> None:
        """Put the parameters back and add the copies' gradients to theirs, in fp32."""
        self._place(self._masters)
        self.cast = False
        first: list[tuple[Tensor, Tensor]] = []
        further: list[tuple[Tensor, Tensor]] = []
        for master, copy, total in zip(self._masters, self._copies, self._totals, strict=True):
            if copy.grad is None:
                continue
            (first if master.grad is None else further).append((total, copy.grad))
            master.grad, copy.grad = total, None
        if first:
            foreach_copy([total for total, _ in first], [grad for _, grad in first])
        if further:
            foreach_add([total for total, _ in further], [grad for _, grad in further])

    def _place(self, parameters: list[nn.Parameter]) -> None:
        for (registered, name), parameter in zip(self._places, parameters, strict=True):
            registered[name] = parameter


def keep_whole(model: nn.Module, dtype: torch.dtype | None, methods: tuple[str, ...] = ()) -> None:
    """Let ``model`` compute in ``dtype`` (None: as it is), in place, around forward and backward.

    ``methods`` are further ones that compute, without gradients. Between passes the parameters are
    what they were: fp32, with fp32 gradients.
    """
    if dtype is None:
        return
    weights = ReplicatedWeights(model, dtype)

    def after(_: nn.Module, __: Any, output: Tensor | None) -> None:
        if output is None or not output.requires_grad:  # None: the pass raised an error
            weights.cast_out()
            return
        # Called once when backward begins; what it queues runs when backward has ended.
        output.register_hook(lambda _: when_backward_ends(weights.cast_out))

    model.register_forward_pre_hook(lambda *_: weights.cast_in())
    model.register_forward_hook(after, always_call=True)
    for name in methods:
        setattr(model, name, _cast_while(weights, getattr(model, name)))


def _cast_while(weights: ReplicatedWeights, method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(*args: Any, **kwargs: Any) -> Tensor:
        if weights.cast:  # within another pass
            return method(*args, **kwargs)
        weights.cast_in()
        try:
            with torch.no_grad():
                return method(*args, **kwargs)
        finally:
            weights.cast_out()

    return call
