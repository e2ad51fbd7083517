"""Activation offload: the widest of the first blocks is on the host until their backward pass.

The input of a block's GELU is ffn / hidden (4) of the 12 activations that ``light`` checkpointing
keeps, in one tensor. A block needs it again only after all later blocks have run forward and
backward. So it is copied out beside the next block's forward pass, its memory is given up one block
later, and it comes back while the block behind runs backward. The memory holds matrix products of
other blocks, which are then not computed twice. The values are the same, bit for bit.

The trade-off: page-locked memory for the whole run, and a bus that must carry a block's activation
while a block computes. That is so where attention takes longer than the matrix products, from
``MIN_TOKENS_PER_HIDDEN`` on: 8 T d bytes at 50 GB/s are then a third of a block's forward pass
(24 T d² + 4 T² d operations at 680 TFLOP/s). Only compiled blocks take part: what an eager block's
selective checkpointing keeps, it keeps to itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from components.lib.cosmos.dit.block import TransformerBlock
from components.lib.train.memory.host_copies import HostCopies

#: Tokens of a sample, in units of hidden, from which attention takes longer than the products.
MIN_TOKENS_PER_HIDDEN = 6
#: Blocks whose activation is on the GPU beside that of the block at work: the one on its way.
PREFETCH_DEPTH = 1


class OffloadedActivation:
    """The activation of one block: on the GPU, on the host, or on its way."""

    def __init__(self, device: torch.device, stream: torch.cuda.Stream | None) -> None:
        self._device = device
        self._copies = HostCopies(device, stream)
        self._on_device: torch.Tensor | None = None
        self._template: torch.Tensor | None = None  # on the meta device

    def prepare(self, elements: int, dtype: torch.dtype) -> int:
        """Make the buffer for the largest clip ready. Returns its bytes."""
        return self._copies.prepare("", torch.empty(elements, dtype=dtype, device="meta")).nbytes

    def offload(self, value: torch.Tensor) -> None:
        """Begin to copy it out."""
        self._on_device, self._template = value, torch.empty_like(value, device="meta")
        self._copies.begin()
        self._copies.copy_out("", value)
        self._copies.end()

    def release(self) -> None:
        """Give up its memory, which the GPU may reuse once the copy is made."""
        self._copies.fence()
        self._on_device = None

    def prefetch(self) -> None:
        """Begin to copy it back, unless it never went."""
        if self._on_device is None and self._template is not None:
            self._on_device = torch.empty_like(self._template, device=self._device)
            self._copies.begin()
            self._copies.copy_back("", self._on_device)
            self._copies.end()

    def fetch(self) -> torch.Tensor:
        """What `offload` was given, for the one who frees it."""
        self.prefetch()
        self._copies.fence()
        value, self._on_device = self._on_device, None
        assert value is not None
        return value


class ActivationOffload:
    """The activations of ``offloaded`` blocks among all, from their next forward pass on."""

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        offloaded: Sequence[int],
        width: int,
        rows: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """``blocks``: all, in the order of the forward pass, ``offloaded``: the numbers of those
        whose activation [rows, width] leaves. ``rows``: of the largest batch that will come (a
        larger one costs time once)."""
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.width = width
        self.nbytes = 0
        self._activations = {number: OffloadedActivation(device, stream) for number in offloaded}
        for number, activation in self._activations.items():
            self.nbytes += activation.prepare(rows * width, dtype)
            block = blocks[number]
            assert isinstance(block, TransformerBlock)
            block.saving = self._saving(activation)
        for number, block in enumerate(blocks):
            block.register_forward_pre_hook(self._release_before(number))
            block.register_forward_hook(self._prefetch_behind(number))

    def _saving(self, activation: OffloadedActivation) -> Any:
        def saving(rows: int) -> AbstractContextManager[None]:
            packed = False

            def pack(value: torch.Tensor) -> object:
                nonlocal packed
                if (
                    packed
                    or value.shape[-1:] != (self.width,)
                    or value.numel() != rows * self.width
                ):
                    return value
                packed = True
                activation.offload(value.detach())
                return activation

            return saved_tensors_hooks(pack, _unpack)

        return saving

    def _release_before(self, number: int) -> Any:
        activation = self._activations.get(number - 1 - PREFETCH_DEPTH)

        def before(*_: object) -> None:
            if activation is not None and torch.is_grad_enabled():
                activation.release()

        return before

    def _prefetch_behind(self, number: int) -> Any:
        activation = self._activations.get(number - PREFETCH_DEPTH)

        def backward_begins(_: torch.Tensor) -> None:
            if activation is not None:
                activation.prefetch()

        def after(_: nn.Module, __: object, output: torch.Tensor) -> None:
            if activation is not None and output.requires_grad:
                output.register_hook(backward_begins)

        return after


def _unpack(value: Any) -> torch.Tensor:
    return value.fetch() if isinstance(value, OffloadedActivation) else value
