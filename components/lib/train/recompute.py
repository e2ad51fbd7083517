"""Choose each block's activation checkpointing so that the GPU's memory is used and not exceeded.

What a block keeps for the backward pass, in units of one activation (tokens x batch x hidden in
bf16), was measured with compiled blocks on an H100: see `KEPT`. All blocks start at the least
memory; then as many as fit go one rung up the ladder full -> selective -> light -> none, cheapest
gain first: keeping attention outputs saves the most time for each byte, keeping matrix products
comes next, and keeping elementwise results last.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from components.lib.cosmos.dit_block import Checkpointing

#: Activations that a block keeps, in units of tokens x batch x hidden x 2 bytes.
KEPT: dict[Checkpointing, float] = {"full": 1.0, "selective": 4.0, "light": 13.5, "none": 23.0}
#: Units that are alive while one block runs backward, beyond what the others keep.
WORKING = 21.0
#: Part of the free memory that is planned with; the rest is for fragmentation and libraries.
USABLE = 0.92
LADDER: tuple[Checkpointing, ...] = ("full", "selective", "light", "none")


def plan_recompute(blocks: int, unit_bytes: float, free_bytes: float) -> list[Checkpointing]:
    """The checkpointing of each block, the last blocks keeping the most.

    ``unit_bytes`` is the size of one activation on this rank; ``free_bytes`` what is left on the
    device after weights, gradients and optimizer state. When even ``full`` does not fit, ``full``
    is what comes back: the estimate is no reason to refuse.
    """
    budget = free_bytes * USABLE / unit_bytes - WORKING - blocks * KEPT[LADDER[0]]
    plan = [LADDER[0]] * blocks
    for lower, upper in pairwise(LADDER):
        more = KEPT[upper] - KEPT[lower]
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
