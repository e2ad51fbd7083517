"""Weights in and out of a sharded model without a whole copy of it on any rank.

Loading reads from the safetensors files just the block that this rank holds. Exporting gathers one
parameter at a time, so the most that is ever in memory beyond the shards is one full tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from components.lib.train.parallel.layout import ParallelLayout, ShardDim
from components.lib.train.torch_private import local_shape_and_offset


def load_shards(
    model: nn.Module,
    folder: Path,
    layout: ParallelLayout,
    shard_dim: ShardDim,
    extras: Collection[str] = (),
) -> dict[str, torch.Tensor]:
    """Fill a sharded model from a canonical folder. Raises UserError listing keys that differ.

    Returns those tensors of the folder that ``extras`` names; they are not the model's.
    """
    from safetensors import safe_open

    from components.lib.cosmos.model_folder import check_keys, read_specs, weight_files

    # Factors of a low-rank update are not part of the base model.
    base = {name: value for name, value in model.state_dict().items() if ".lora_" not in name}
    expected = {name: _full_shape(name, value, layout, shard_dim) for name, value in base.items()}
    specs = read_specs(folder)
    stored = {name: spec.shape for name, spec in specs.items() if name not in extras}
    beside: dict[str, torch.Tensor] = {}
    check_keys(expected, stored, str(folder))
    with torch.no_grad():
        for path in weight_files(folder):
            with safe_open(str(path), framework="pt") as source:
                for name in source.keys():  # noqa: SIM118 - safe_open is no mapping
                    if name in extras:
                        beside[name] = source.get_tensor(name)
                    else:
                        _fill(name, base[name], source.get_slice(name), layout, shard_dim)
    return beside


def _full_shape(
    name: str, value: torch.Tensor, layout: ParallelLayout, shard_dim: ShardDim
) -> tuple[int, ...]:
    shape = list(value.shape)
    dim = shard_dim(name)
    if dim is not None:
        shape[dim] *= layout.tp
    return tuple(shape)


def _fill(
    name: str, target: torch.Tensor, source: Any, layout: ParallelLayout, shard_dim: ShardDim
) -> None:
    if isinstance(target, DTensor):
        cut_into(target, source, layout, shard_dim(name))
    else:
        target.copy_(source[:] if target.dim() else source[...])


def cut_into(target: DTensor, source: Any, layout: ParallelLayout, dim: int | None) -> None:
    """Copy this rank's block of ``source`` (a full tensor, or a slice reader of one).

    ``dim`` is the dimension that tensor parallelism splits.
    """
    shape, offset = local_shape_and_offset(target.shape, target.device_mesh, target.placements)
    starts = list(offset)
    if dim is not None:
        starts[dim] += layout.tp_rank * target.shape[dim]
    if 0 in shape:
        return
    block = tuple(slice(start, start + size) for start, size in zip(starts, shape, strict=True))
    target.to_local().copy_(source[block])


def gather_weights(
    model: nn.Module,
    values: Mapping[str, torch.Tensor],
    layout: ParallelLayout,
    shard_dim: ShardDim,
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, full fp32 tensor on the host) of every parameter and buffer, one at a time.

    Collective: every rank must exhaust it. ``values`` replaces some parameters (a moving average).
    """
    for name, value in model.state_dict().items():
        tensor = values.get(name, value).detach()
        local = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        dim = shard_dim(name)
        if dim is not None and layout.tp > 1:
            parts = [torch.empty_like(local) for _ in range(layout.tp)]
            dist.all_gather(parts, local.contiguous(), group=layout.tp_group)
            local = torch.cat(parts, dim=dim)
        yield name, local.cpu()
