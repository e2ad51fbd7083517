"""Optimizer offload: its state is on the host while activations need its memory.

Adam's moments and the moving average are read and written once a step, after the backward pass,
when the activations are gone. Between two optimizer steps they are 8 (12) of the 12 (16) bytes per
parameter that a rank holds, at the very moment when the kept activations are at their most. So
they change places: during the forward pass they are copied out and their memory is given up, well
before its end; in the last part of the backward pass they come back into memory that activations
have left. The optimizer then runs on the GPU as ever and computes the same, bit for bit. What is
kept instead saves recomputation.

The trade-off: page-locked buffers of that size for the whole run, which take 0.25 s a GiB to make,
and a bus that is busy for a part of each step; the copies run beside the computation.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from enum import Enum, auto
from pathlib import Path
from typing import Any

import torch
from torch import nn

from components.lib.train.memory.host_copies import HostCopies

#: Smaller tensors stay: a copy of their own is more work than their memory is worth.
SMALLEST_BYTES = 2**16
#: Of cgroup 2 and 1: limit, use, and the line of memory.stat with the file cache that is counted as
#: used but given up when memory is needed.
CGROUPS = (
    ("memory.max", "memory.current", "inactive_file "),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file "),
)


class Residence(Enum):
    """Where a block's part of the state is."""

    DEVICE = auto()
    MOVING = auto()
    HOST = auto()


class OptimizerOffload:
    """State by block, in the order of the forward pass."""

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        state: Sequence[Mapping[str, torch.Tensor]],
        device: torch.device,
        stream: torch.cuda.Stream | None,
    ) -> None:
        """``state``: for each block its local tensors by name. Allocates the buffers.

        ``stream``: that of every other copy of the state, a checkpoint's. Memory is given up when
        the copy here is made, and so when those that were queued before are.
        """
        self.returns = True
        self._evicts = False
        self._state = [
            {name: value for name, value in part.items() if value.nbytes >= SMALLEST_BYTES}
            for part in state
        ]
        self._residence = [Residence.DEVICE for _ in blocks]
        self._copies = [HostCopies(device, stream) for _ in blocks]
        for copies, part in zip(self._copies, self._state, strict=True):
            for name, value in part.items():
                copies.prepare(name, value)
        for number, block in enumerate(blocks):
            block.register_forward_pre_hook(self._make_room(number))
            block.register_forward_hook(self._watch(number))

    @property
    def nbytes(self) -> int:
        """Bytes that change places."""
        return sum(value.nbytes for part in self._state for value in part.values())

    def evict(self) -> None:
        """Have everything copied out in the forward pass that follows.

        With several passes a step, ``returns`` says whether the state comes back in the next
        backward pass.
        """
        self._evicts = True

    def fetch(self) -> None:
        """Make what the GPU is given from now on find all state in its place."""
        self._evicts = False
        for number in range(len(self._state)):
            self._bring_back(number)
        for copies in self._copies:
            copies.fence()

    def _make_room(self, number: int) -> Any:
        count = len(self._state)

        def before(*_: Any) -> None:
            if not self._evicts:
                return
            for other in range(leaving_at(number, count)):
                self._copy_out(other)
            for other in range(gone_before(number, count)):
                self._release(other)

        return before

    def _watch(self, number: int) -> Any:
        count = len(self._state)

        def backward_begins(_: torch.Tensor) -> None:
            back = back_after(count - 1 - number, count) if self.returns else 0
            for other in range(count - back, count):
                self._bring_back(other)

        def after(_: nn.Module, __: Any, output: torch.Tensor) -> None:
            if output.requires_grad:
                output.register_hook(backward_begins)

        return after

    def _copy_out(self, number: int) -> None:
        if self._residence[number] is not Residence.DEVICE:
            return
        copies = self._copies[number]
        copies.begin()
        for name, value in self._state[number].items():
            copies.copy_out(name, value)
        copies.end()
        self._residence[number] = Residence.MOVING

    def _release(self, number: int) -> None:
        if self._residence[number] is not Residence.MOVING:
            return
        self._copies[number].wait()
        for value in self._state[number].values():
            value.untyped_storage().resize_(0)
        self._residence[number] = Residence.HOST

    def _bring_back(self, number: int) -> None:
        if self._residence[number] is Residence.HOST:
            copies, part = self._copies[number], self._state[number]
            for value in part.values():
                value.untyped_storage().resize_(value.nbytes)
            copies.begin()
            for name, value in part.items():
                copies.copy_back(name, value)
            copies.end()
        self._residence[number] = Residence.DEVICE


def leaving_at(number: int, count: int) -> int:
    """How many of ``count`` blocks' parts are on their way when block ``number`` begins its forward
    pass.

    Evenly over the first three quarters, and each at least a block before it has to be gone: all at
    once they would keep the bus from activations that leave as well (`activation_offload`), which
    the GPU then waits for (0.3 s of a step of 12.6 s on two H200).
    """
    return min(count, -(-4 * (number + 1) // 3))


def gone_before(number: int, count: int) -> int:
    """How many of ``count`` blocks' parts are gone when block ``number`` begins its forward pass.

    Twice as fast as blocks go by, so all are gone at three quarters; but none before the GPU has
    enough to do not to notice that the thread which feeds it waits for a copy.
    """
    return min(count, max(0, 2 * (number - count // 4)))


def back_after(done: int, count: int) -> int:
    """How many parts, of the last blocks first, are back when ``done`` have run backward.

    As late as the bus allows with some reserve: the earlier, the less can be kept instead.
    """
    return min(count, max(0, 2 * done - 3 * count // 4))


def host_bytes_left(root: Path = Path("/")) -> float:
    """Bytes of host memory that this machine or container has left for each of its ranks."""
    meminfo = (root / "proc/meminfo").read_text().split("\n")
    free = next((line for line in meminfo if line.startswith("MemAvailable:")), None)
    left = float(free.split()[1]) * 1024 if free else float("inf")
    group = root / "sys/fs/cgroup"
    for limit_file, used_file, cached in CGROUPS:
        limit, used = group / limit_file, group / used_file
        if limit.is_file() and used.is_file() and (text := limit.read_text().strip()) != "max":
            stat = (limit.parent / "memory.stat").read_text().split("\n")
            cache = sum(float(line.split()[1]) for line in stat if line.startswith(cached))
            left = min(left, float(text) - float(used.read_text()) + cache)
    return left / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
