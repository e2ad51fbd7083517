"""Choose each block's activation checkpointing so that the GPU's memory is used and not exceeded.

What a block keeps for the backward pass is counted in units of one activation on a rank (its rows
x batch x hidden in bf16), for compiled blocks: see `kept`. All blocks start at the least memory;
then as many as fit go one rung up the ladder full -> selective -> light -> none, cheapest gain
first: keeping attention outputs saves the most time for each byte, keeping matrix products comes
next, and keeping elementwise results last.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from components.lib.cosmos.dit_block import Checkpointing

#: Activations that a block keeps, in units of rows x batch x hidden x 2 bytes. Counted from what
#: autograd holds after a forward pass; ``none`` was 3 less than that on an H100.
KEPT: dict[Checkpointing, float] = {"full": 1.0, "selective": 4.0, "light": 11.0, "none": 21.0}
#: Gathered inputs that ``none`` keeps in each block: all rows instead of a rank's own.
GATHERED = 3
#: Units that are alive while one block runs backward, beyond what the others keep; then those that
#: are gathered or wait to be scattered, which count as often as there are tensor-parallel ranks.
WORKING = 21.0
WORKING_GATHERED = 5.0
#: Part of the free memory that is planned with; the rest is for fragmentation and libraries.
USABLE = 0.92
#: The same with sequence parallelism, whose collectives add buffers and blocks freed late: at 0.92
#: the allocator of two H200s started over eight times, 0.6 s of a 7.7 s step.
USABLE_GATHERED = 0.88
LADDER: tuple[Checkpointing, ...] = ("full", "selective", "light", "none")


def kept(mode: Checkpointing, sequence_ranks: int = 1) -> float:
    """Units that a block keeps whose rows are cut over so many ranks by sequence parallelism."""
    return KEPT[mode] + (GATHERED * (sequence_ranks - 1) if mode == "none" else 0.0)


def working(sequence_ranks: int = 1) -> float:
    """Units alive while one block runs backward."""
    return WORKING + WORKING_GATHERED * (sequence_ranks - 1)


def plan_recompute(
    blocks: int, unit_bytes: float, free_bytes: float, sequence_ranks: int = 1
) -> list[Checkpointing]:
    """The checkpointing of each block, the last blocks keeping the most.

    ``unit_bytes`` is the size of one activation on this rank; ``free_bytes`` what is left on the
    device after weights, gradients and optimizer state. When even ``full`` does not fit, ``full``
    is what comes back: the estimate is no reason to refuse.
    """
    usable = free_bytes * (USABLE if sequence_ranks == 1 else USABLE_GATHERED)
    budget = usable / unit_bytes - working(sequence_ranks) - blocks * KEPT[LADDER[0]]
    plan = [LADDER[0]] * blocks
    for lower, upper in pairwise(LADDER):
        more = kept(upper, sequence_ranks) - kept(lower, sequence_ranks)
        fitting = max(0, min(blocks, int(budget // more)))
        for index in range(blocks - fitting, blocks):
            plan[index] = upper
        budget -= fitting * more
        if fitting < blocks:
            break
    return plan


def free_after_state(model: nn.Module, *, ema: bool) -> float:
    """Bytes of this CUDA device that weights, Adam's moments and EMA will leave.

    Gradients are left out: they grow during the backward pass while activations go. Computed from
    the sharded parameters, so it is the same before and after the first step.
    """
    state = 0.0
    largest = 0
    for parameter in model.parameters():
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        copies = (3 + ema) if parameter.requires_grad else 1
        state += local.numel() * local.element_size() * copies
    for block in model.get_submodule("blocks").children():
        largest = max(largest, sum(p.numel() for p in block.parameters()))
    gathered = 3 * largest * 2  # bf16 weights of the block at work and of the next, one gradient
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return total - state - gathered
