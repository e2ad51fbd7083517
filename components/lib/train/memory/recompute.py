"""Choose each block's activation checkpointing so that the GPU's memory is used and not exceeded.

What a block keeps for the backward pass is counted in units of one activation on a rank (its rows
x batch x hidden in bf16), for compiled blocks: see `kept`. All blocks start at the least memory;
then as many as fit go one rung up the ladder full -> selective -> light -> none, cheapest gain
first: keeping attention outputs saves the most time for each byte, keeping matrix products comes
next, and keeping elementwise results last. Where products would still be computed twice, what is
not needed for long makes room on the host: the optimizer's state (`waiting`), then the widest
activation of as many blocks as it takes (`wide`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import nn

from components.lib.cosmos.dit.block import Checkpointing
from components.lib.cosmos.flops import KEPT, WORKING
from components.lib.train.memory.activation_offload import BESIDE
from components.lib.train.memory.optimizer_offload import back_after, gone_before
from components.lib.train.parallel.layout import local_part
from components.lib.train.settings.config import Place

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


class Room(NamedTuple):
    """What a plan is made for.

    ``unit_bytes`` is the size of one activation on this rank; ``free_bytes`` what is left on the
    device after weights and optimizer state, of which, with what state on the host leaves, the part
    ``usable`` is planned with; ``gradient_bytes`` a block's gradients on this rank, which take the
    place of its activations; ``wide_bytes`` the widest activation of a block, which may wait on the
    host for as many blocks as ``most_away``.
    """

    blocks: int
    unit_bytes: float
    free_bytes: float
    sequence_ranks: int = 1
    usable: float = 0.94
    gradient_bytes: float = 0.0
    wide_bytes: float = 0.0
    most_away: int = 0


class Plan(NamedTuple):
    """``kinds`` by block; whether the optimizer's state waits on the host; and the numbers of the
    blocks whose widest activation does."""

    kinds: list[Checkpointing]
    state_waits: bool
    away: list[int]


def plan_recompute(room: Room, waiting_bytes: float = 0.0, away: int = 0) -> list[Checkpointing]:
    """The checkpointing of each block, the last blocks keeping the most.

    ``waiting_bytes`` is a block's part of the optimizer's state if that waits on the host
    (`waiting`); ``room.free_bytes`` leaves it out all the same. The first ``away`` blocks that keep
    their widest activation have it wait there too. When even ``full`` does not fit, ``full`` is
    what comes back: the estimate is no reason to refuse.
    """
    plan: list[Checkpointing] = [LADDER[0]] * room.blocks
    at_work = working(room.sequence_ranks) * room.unit_bytes
    for upper in LADDER[1:]:
        part = min(room.usable, USABLE_FOR_NONE) if upper == "none" else room.usable
        budget = (room.free_bytes + room.blocks * waiting_bytes) * part - at_work
        for index in reversed(range(room.blocks)):
            more: list[Checkpointing] = [*plan[:index], upper, *plan[index + 1 :]]
            activations = [kept(kind, room.sequence_ranks) * room.unit_bytes for kind in more]
            gone = keep_products(more)[:away]
            wide = [room.wide_bytes * (block in gone) for block in range(room.blocks)]
            if most_held(activations, wide, room.gradient_bytes, waiting_bytes) > budget:
                return plan
            plan = more
    return plan


def keep_products(plan: Sequence[Checkpointing]) -> list[int]:
    """The numbers of the blocks that keep their products; the first needs them last."""
    return [block for block, kind in enumerate(plan) if not repeats_products([kind])]


def most_held(
    activations: Sequence[float], wide: Sequence[float], gradient: float, waiting: float
) -> float:
    """Most bytes that activations, gradients and returning state take in the course of a step.

    ``activations`` by block, in the order of the forward pass, and what of each waits on the host
    while neither it nor a neighbour is at work; the others for each block.
    """
    count = len(activations)
    kept_before = [0.0, *accumulate(activations)]
    away_before = [0.0, *accumulate(wide)]

    def held(blocks: int) -> float:
        """By the first so many blocks, the last of which is at work."""
        return kept_before[blocks] - away_before[max(blocks - 1 - BESIDE, 0)]

    forward = [
        held(block + 1) + (count - gone_before(block, count)) * waiting for block in range(count)
    ]
    backward = [
        held(count - done) + done * gradient + back_after(done, count) * waiting
        for done in range(count + 1)
    ]
    return max(*forward, *backward)


def make_plan(room: Room, state_bytes: float, state: Place, wide: Place) -> Plan:
    """What each block recomputes and what waits on the host, for these wishes.

    ``state_bytes`` is a block's part of the optimizer's state. ``auto`` moves anything only where
    matrix products would otherwise be repeated: the rest of what recomputation costs is not worth
    a bus that is always busy.
    """
    kinds, waits = _with_state(state, room, state_bytes)
    waiting = state_bytes if waits else 0.0
    if wide == "host":
        kinds = plan_recompute(room, waiting, room.blocks)
        return Plan(kinds, waits, keep_products(kinds))
    away = 0
    while wide == "auto" and repeats_products(kinds) and away < room.most_away:
        away += 1
        kinds = plan_recompute(room, waiting, away)
    return Plan(kinds, waits, keep_products(kinds)[:away])


def _with_state(wish: Place, room: Room, state_bytes: float) -> tuple[list[Checkpointing], bool]:
    """The plan without activations on the host, and whether the optimizer's state waits there."""
    staying = plan_recompute(room)
    if wish == "gpu" or (wish == "auto" and not repeats_products(staying)):
        return staying, False
    waiting = plan_recompute(room, state_bytes)
    if wish == "auto" and _kept_by(waiting) <= _kept_by(staying):
        return staying, False
    return waiting, True


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
