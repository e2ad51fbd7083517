"""What training uses of PyTorch beyond its public names. Written against PyTorch 2.13.

`components.lib.cosmos.torch_private` has what the networks use. `tests/test_foreign_private.py`
keeps such uses in files of this kind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd import Variable
from torch.distributed.device_mesh import DeviceMesh

# Why: FSDP's own reduce-scatter is the base of ours. On an upgrade: is it exported by now, and does
# FSDP still call `allocate` and then the object?
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter
from torch.distributed.fsdp._fully_shard._fsdp_common import (
    FSDPMeshInfo,
    HSDPMeshInfo,
    ShardPlacementResult,
)
from torch.distributed.tensor import Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

# Why: tells which block of a global tensor is this rank's, by the same rule as DTensor cuts it.
# On an upgrade: is there a public call by now?
local_shape_and_offset = compute_local_shape_and_global_offset

# Why: one kernel for many tensors, where a loop would start one for each; a tokenizer has hundreds
# of small ones. `torch.optim` is made of these. On an upgrade: does it still call them so?
foreach_add = torch._foreach_add_
foreach_copy = torch._foreach_copy_
foreach_mul = torch._foreach_mul_
foreach_norm = torch._foreach_norm


def rows_over(flat_mesh: DeviceMesh) -> Any:
    """FSDP's placement of a parameter that is split by rows over all of ``flat_mesh``.

    ``flat_mesh`` is [replicas, all]. Why: `fully_shard` takes one mesh, and only its placement
    function may name another, by these types. On an upgrade: are they exported by now?
    """
    if flat_mesh.size(0) > 1:
        info: FSDPMeshInfo = HSDPMeshInfo(flat_mesh, shard_mesh_dim=1, replicate_mesh_dim=0)
    else:
        info = FSDPMeshInfo(flat_mesh["all"], shard_mesh_dim=0)
    return ShardPlacementResult(Shard(0), info)


def set_reduce_scatter(module: nn.Module, communication: ReduceScatter) -> None:
    """Let a module that is sharded by FSDP reduce its gradients with ``communication``.

    Why: `set_custom_reduce_scatter` refuses modules with several groups, for communication that
    belongs to one of them; ours belongs to none. On an upgrade: does it still? If not, call it.
    """
    for group in module._get_fsdp_state()._fsdp_param_groups:  # type: ignore[operator]
        group._reduce_scatter_comm = communication


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """The table in which a module registers its own parameters.

    Why: `Module.__setattr__` would cost as much as replicated weights save. On an upgrade: does
    `Module.__getattr__` still read `_parameters`?
    """
    return module._parameters


def when_backward_ends(call: Callable[[], None]) -> None:
    """Call once the backward pass that is under way has ended. To be used within it only.

    Why: gradients are complete then and not before, and hooks come too early. On an upgrade: do
    FSDP and DDP still queue their own last steps like this?
    """
    Variable._execution_engine.queue_callback(call)
