"""Choose each block's activation checkpointing so that the GPU's memory is used and not exceeded.

What a block keeps for the backward pass is counted in units of one activation on a rank (its rows
x batch x hidden in bf16), for compiled blocks: see `kept`. All blocks start at the least memory;
then as many as fit go one rung up the ladder full -> selective -> light -> none, cheapest gain
first: keeping attention outputs saves the most time for each byte, keeping matrix products comes
next, and keeping elementwise results last. Where products would still be computed twice, what is
not needed for long is offloaded to the host: the optimizer's state (`optimizer_offload`), then the
widest activation of as many blocks as it takes (`activation_offload`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import nn

from components.lib.cosmos.dit.block import Checkpointing
from components.lib.cosmos.flops import KEPT, WORKING
from components.lib.train.memory.activation_offload import PREFETCH_DEPTH
from components.lib.train.memory.optimizer_offload import back_after, gone_before
from components.lib.train.parallel.layout import local_part
from components.lib.train.settings.config import Placement

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


class MemoryBudget(NamedTuple):
    """What a plan is made for.

    ``unit_bytes`` is the size of one activation on this rank; ``free_bytes`` what is left on the
    device after weights and optimizer state, of which, with what offloaded state leaves, the part
    ``usable`` is planned with; ``gradient_bytes`` a block's gradients on this rank, which take the
    place of its activations; ``activation_bytes`` the widest activation of a block, which may be
    offloaded for as many blocks as ``most_offloaded``.
    """

    blocks: int
    unit_bytes: float
    free_bytes: float
    sequence_ranks: int = 1
    usable: float = 0.94
    gradient_bytes: float = 0.0
    activation_bytes: float = 0.0
    most_offloaded: int = 0


class MemoryPlan(NamedTuple):
    """``kinds`` by block; whether the optimizer's state is offloaded; and the numbers of the blocks
    whose widest activation is."""

    kinds: list[Checkpointing]
    optimizer_offloaded: bool
    offloaded: list[int]


def plan_recompute(
    budget: MemoryBudget, offloaded_state_bytes: float = 0.0, offloaded: int = 0
) -> list[Checkpointing]:
    """The checkpointing of each block, the last blocks keeping the most.

    ``offloaded_state_bytes`` is a block's part of the optimizer's state if that waits on the host
    (`optimizer_offload`); ``budget.free_bytes`` leaves it out all the same. The first ``offloaded``
    blocks that keep their widest activation have it wait there too. When even ``full`` does not
    fit, ``full`` is what comes back: the estimate is no reason to refuse.
    """
    plan: list[Checkpointing] = [LADDER[0]] * budget.blocks
    at_work = working(budget.sequence_ranks) * budget.unit_bytes
    for upper in LADDER[1:]:
        part = min(budget.usable, USABLE_FOR_NONE) if upper == "none" else budget.usable
        available = (budget.free_bytes + budget.blocks * offloaded_state_bytes) * part - at_work
        for index in reversed(range(budget.blocks)):
            more: list[Checkpointing] = [*plan[:index], upper, *plan[index + 1 :]]
            activations = [kept(kind, budget.sequence_ranks) * budget.unit_bytes for kind in more]
            on_host = keep_products(more)[:offloaded]
            absent = [budget.activation_bytes * (n in on_host) for n in range(budget.blocks)]
            if (
                peak_bytes(activations, absent, budget.gradient_bytes, offloaded_state_bytes)
                > available
            ):
                return plan
            plan = more
    return plan


def keep_products(plan: Sequence[Checkpointing]) -> list[int]:
    """The numbers of the blocks that keep their products; the first needs them last."""
    return [block for block, kind in enumerate(plan) if not repeats_products([kind])]


def peak_bytes(
    activations: Sequence[float], absent: Sequence[float], gradient: float, state: float
) -> float:
    """Most bytes that activations, gradients and returning state take in the course of a step.

    ``activations`` by block, in the order of the forward pass, and ``absent``: what of each is on
    the host while neither it nor a neighbour is at work; ``gradient`` and ``state`` for each block.
    """
    count = len(activations)
    kept_before = [0.0, *accumulate(activations)]
    absent_before = [0.0, *accumulate(absent)]

    def resident(blocks: int) -> float:
        """By the first so many blocks, the last of which is at work."""
        return kept_before[blocks] - absent_before[max(blocks - 1 - PREFETCH_DEPTH, 0)]

    forward = [
        resident(block + 1) + (count - gone_before(block, count)) * state for block in range(count)
    ]
    backward = [
        resident(count - done) + done * gradient + back_after(done, count) * state
        for done in range(count + 1)
    ]
    return max(*forward, *backward)


def make_plan(
    budget: MemoryBudget, state_bytes: float, state: Placement, activations: Placement
) -> MemoryPlan:
    """What each block recomputes and what waits on the host, for these wishes.

    ``state_bytes`` is a block's part of the optimizer's state. ``auto`` moves anything only where
    matrix products would otherwise be repeated: the rest of what recomputation costs is not worth
    a bus that is always busy.
    """
    kinds, optimizer_offloaded = _with_state(state, budget, state_bytes)
    offloaded_state = state_bytes if optimizer_offloaded else 0.0
    if activations == "host":
        kinds = plan_recompute(budget, offloaded_state, budget.blocks)
        return MemoryPlan(kinds, optimizer_offloaded, keep_products(kinds))
    offloaded = 0
    while activations == "auto" and repeats_products(kinds) and offloaded < budget.most_offloaded:
        offloaded += 1
        kinds = plan_recompute(budget, offloaded_state, offloaded)
    return MemoryPlan(kinds, optimizer_offloaded, keep_products(kinds)[:offloaded])


def _with_state(
    wish: Placement, budget: MemoryBudget, state_bytes: float
) -> tuple[list[Checkpointing], bool]:
    """The plan without activations on the host, and whether the optimizer's state waits there."""
    resident_state = plan_recompute(budget)
    if wish == "gpu" or (wish == "auto" and not repeats_products(resident_state)):
        return resident_state, False
    evicted_state = plan_recompute(budget, state_bytes)
    if wish == "auto" and _kept_by(evicted_state) <= _kept_by(resident_state):
        return resident_state, False
    return evicted_state, True


def repeats_products(plan: Sequence[Checkpointing]) -> bool:
    """Whether some block computes matrix products twice."""
    return any(LADDER.index(kind) < LADDER.index("light") for kind in plan)


def _kept_by(plan: Sequence[Checkpointing]) -> int:
    return sum(LADDER.index(kind) for kind in plan)


def device_bytes(device: torch.device) -> float | None:
    """Memory of a GPU; None for a CPU, whose memory is not planned with."""
    if device.type != "cuda":
        return None
    return float(torch.cuda.get_device_properties(device).total_memory)


def free_after_state(
    model: nn.Module, total_bytes: float, *, ema: bool, accumulates: bool = False
) -> float:
    """Bytes of a device that weights, Adam's moments and EMA will leave.

    Gradients are left out unless they accumulate over several passes: they grow during the backward
    pass while activations go, out of the same memory (`layout.ReduceInPlace`). Computed from the
    sharded parameters, so it is the same before and after the first step.
    """
    state = 0.0
    largest = 0
    for parameter in model.parameters():
        local = local_part(parameter)
        copies = (3 + ema + accumulates) if parameter.requires_grad else 1
        state += local.numel() * local.element_size() * copies
    for block in model.get_submodule("blocks").children():
        largest = max(largest, sum(p.numel() for p in block.parameters()))
    gathered = 3 * largest * 2  # bf16 weights of the block at work and of the next, one gradient
    return total_bytes - state - gathered


def block_gradient_bytes(model: nn.Module) -> float:
    """Bytes of the fp32 gradients of the largest block on this rank."""
    return max(
        sum(4.0 * local_part(p).numel() for p in block.parameters() if p.requires_grad)
        for block in model.get_submodule("blocks").children()
    )
