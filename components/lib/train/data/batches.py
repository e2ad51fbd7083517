"""Batches: named tensors, broadcast inside a tensor-parallel group so that its ranks cannot differ.

Only the first rank of each group reads data and draws noise; the others receive. That also divides
the reading from object storage by the tensor-parallel size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from components.lib.train.parallel.layout import ParallelLayout

Batch = dict[str, torch.Tensor]
_HEADER_BYTES = 4096


def to_device(batch: Mapping[str, torch.Tensor], device: torch.device) -> Batch:
    """The batch on ``device``."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def shared_batch(make: Callable[[], Batch], layout: ParallelLayout) -> Batch:
    """The batch of the group's first rank, on this rank's device. ``make`` runs only there."""
    if layout.tp == 1:
        return to_device(make(), layout.device)
    if layout.tp_rank == 0:
        batch = to_device(make(), layout.device)
        _send(batch, layout)
        return batch
    return _receive(layout)


def _send(batch: Batch, layout: ParallelLayout) -> None:
    described = [[name, list(v.shape), str(v.dtype)[6:]] for name, v in batch.items()]
    text = json.dumps(described).encode().ljust(_HEADER_BYTES)
    header = torch.tensor(list(text), dtype=torch.uint8, device=layout.device)
    dist.broadcast(header, group=layout.tp_group, group_src=0)
    for value in batch.values():
        dist.broadcast(value.contiguous(), group=layout.tp_group, group_src=0)


def _receive(layout: ParallelLayout) -> Batch:
    header = torch.empty(_HEADER_BYTES, dtype=torch.uint8, device=layout.device)
    dist.broadcast(header, group=layout.tp_group, group_src=0)
    described: list[list[Any]] = json.loads(bytes(header.cpu().tolist()))
    batch: Batch = {}
    for name, shape, dtype in described:
        value = torch.empty(shape, dtype=getattr(torch, dtype), device=layout.device)
        dist.broadcast(value, group=layout.tp_group, group_src=0)
        batch[name] = value
    return batch
