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

from components.lib.cosmos.dit_block import Checkpointing
from components.lib.cosmos.flops import KEPT, WORKING
from components.lib.train.layout import local_part

#: Gathered inputs that ``none`` keeps in each block: all rows instead of a rank's own.
GATHERED = 3
#: Units that are gathered or wait to be scattered while one block runs backward, which count as
#: often as there are tensor-parallel ranks.
WORKING_GATHERED = 5.0
#: Part of the free memory that is planned with for keeping elementwise results, which saves
#: little: not worth an allocator that runs out and starts over.
USABLE_FOR_NONE = 0.80
LADDER: tuple[Checkpointing, ...] = ("full", "selective", "light", "none")


def kept(mode: Checkpointing, sequence_ranks: int = 1) -> float:
    """Units that a block keeps whose rows are cut over so many ranks by sequence parallelism."""
    return KEPT[mode] + (GATHERED * (sequence_ranks - 1) if mode == "none" else 0.0)


def working(sequence_ranks: int = 1) -> float:
    """Units alive while one block runs backward."""
    return WORKING + WORKING_GATHERED * (sequence_ranks - 1)


def plan_recompute(
    blocks: int,
    unit_bytes: float,
    free_bytes: float,
    sequence_ranks: int = 1,
    *,
    usable: float = 0.94,
    gradient_bytes: float = 0.0,
) -> list[Checkpointing]:
    """The checkpointing of each block, the last blocks keeping the most.

    ``unit_bytes`` is the size of one activation on this rank; ``free_bytes`` what is left on the
    device after weights and optimizer state, of which the part ``usable`` is planned with;
    ``gradient_bytes`` a block's gradients on this rank, which take the place of its activations.
    When even ``full`` does not fit, ``full`` is what comes back: the estimate is no reason to
    refuse.
    """

    def needed(mode: Checkpointing) -> float:
        return max(kept(mode, sequence_ranks), gradient_bytes / unit_bytes)

    plan = [LADDER[0]] * blocks
    spent = working(sequence_ranks) + blocks * needed(LADDER[0])
    for lower, upper in pairwise(LADDER):
        part = min(usable, USABLE_FOR_NONE) if upper == "none" else usable
        budget = free_bytes * part / unit_bytes - spent
        if budget < 0:
            break
        more = needed(upper) - needed(lower)
        fitting = int(min(blocks, budget // more)) if more > 0 else blocks
        for index in range(blocks - fitting, blocks):
            plan[index] = upper
        spent += fitting * more
        if fitting < blocks:
            break
    return plan


def free_after_state(model: nn.Module, *, ema: bool) -> float:
    """Bytes of this CUDA device that weights, Adam's moments and EMA will leave.

    Gradients are left out: they grow during the backward pass while activations go, out of the
    same memory (`layout.ReduceInPlace`). Computed from the sharded parameters, so it is the same
    before and after the first step.
    """
    state = 0.0
    largest = 0
    for parameter in model.parameters():
        local = local_part(parameter)
        copies = (3 + ema) if parameter.requires_grad else 1
        state += local.numel() * local.element_size() * copies
    for block in model.get_submodule("blocks").children():
        largest = max(largest, sum(p.numel() for p in block.parameters()))
    gathered = 3 * largest * 2  # bf16 weights of the block at work and of the next, one gradient
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return total - state - gathered


def block_gradient_bytes(model: nn.Module) -> float:
    """Bytes of the fp32 gradients of the largest block on this rank."""
    return max(
        sum(4.0 * local_part(p).numel() for p in block.parameters() if p.requires_grad)
        for block in model.get_submodule("blocks").children()
    )
