"""The memory plan of a diffusion run: what the machine has, what each block then keeps.

Made once, before the first pass, for the largest clip that will come. The device's free memory
after weights and optimizer state, the rows of a batch and the host's free memory make a budget
(`recompute.MemoryBudget`); `recompute.make_plan` turns it into each block's checkpointing and what
is offloaded. Recomputation repeats tensor-parallel collectives, so the tightest rank's figures are
everyone's. The trade-off: a plan for the largest clip keeps less than smaller ones would allow.
"""

from __future__ import annotations

import logging

import torch
import torch.distributed as dist
from torch import nn

from components.lib.cosmos.dit.config import DiTConfig
from components.lib.train.memory.activation_offload import MIN_TOKENS_PER_HIDDEN, PREFETCH_DEPTH
from components.lib.train.memory.optimizer_offload import host_bytes_left
from components.lib.train.memory.recompute import (
    MemoryBudget,
    MemoryPlan,
    block_gradient_bytes,
    free_after_state,
    make_plan,
)
from components.lib.train.parallel.layout import ParallelLayout
from components.lib.train.settings.config import TrainerConfig

log = logging.getLogger("cosmos.train")
#: Host memory that each rank leaves for decoded data and the writing of checkpoints.
HOST_RESERVE = 24 * 2**30


def plan_memory(
    model: nn.Module,
    dit: DiTConfig,
    layout: ParallelLayout,
    trainer: TrainerConfig,
    *,
    total_bytes: float,
    samples: int,
    tokens: int,
    passes: int,
) -> MemoryPlan:
    """The plan for a GPU of ``total_bytes`` and micro-batches of ``samples`` clips of ``tokens``
    tokens, of which ``passes`` make a step; the same on every rank."""
    sequence_ranks = layout.tp if layout.sequence_parallel else 1
    rows = samples * tokens / sequence_ranks
    ema = bool(trainer.ema_decay)
    free = free_after_state(model, total_bytes, ema=ema, accumulates=passes > 1)
    gradients = block_gradient_bytes(model)
    state = (2 + ema) * gradients  # moments and average are fp32 as well
    host = host_bytes_left() - dit.layers * state - HOST_RESERVE
    tightest = torch.tensor([free, -rows, host], dtype=torch.float64, device=layout.device)
    dist.all_reduce(tightest, op=dist.ReduceOp.MIN)
    free, rows, host = float(tightest[0]), -float(tightest[1]), float(tightest[2])
    activation = 2.0 * rows * sequence_ranks * dit.ffn / layout.tp
    long_enough = trainer.compile and tokens >= MIN_TOKENS_PER_HIDDEN * dit.hidden
    fits_host = min(dit.layers - 1 - PREFETCH_DEPTH, int(max(host, 0) / activation))
    budget = MemoryBudget(
        blocks=dit.layers,
        unit_bytes=rows * dit.hidden * 2,
        free_bytes=free,
        sequence_ranks=sequence_ranks,
        usable=trainer.recompute_memory,
        gradient_bytes=0.0 if passes > 1 else gradients,
        activation_bytes=activation,
        most_offloaded=fits_host if long_enough else 0,
    )
    wish = trainer.optimizer_state
    placement = "gpu" if wish == "auto" and host < 0 else wish
    plan = make_plan(budget, state, placement, trainer.activations)
    if layout.is_main:
        log.info("%s", describe_plan(plan, free, activation))
    return plan


def describe_plan(plan: MemoryPlan, free_bytes: float, activation_bytes: float) -> str:
    """The plan in one line for the log."""
    kinds = ", ".join(f"{kind} x {plan.kinds.count(kind)}" for kind in dict.fromkeys(plan.kinds))
    offloaded = ["the optimizer's state"] * plan.optimizer_offloaded
    if plan.offloaded:
        gib = len(plan.offloaded) * activation_bytes / 2**30
        offloaded.append(f"{gib:.1f} GiB of activations of {len(plan.offloaded)} blocks")
    return (
        f"recompute for {free_bytes / 2**30:.1f} GiB of free memory: {kinds}; on the host during "
        f"passes: {' and '.join(offloaded) or 'nothing'}"
    )
