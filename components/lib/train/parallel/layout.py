"""Which rank does what: tensor parallel x data parallel, on any device.

megatron-core's `parallel_state` holds the tensor-parallel groups that the DiT's layers use; torch's
`DeviceMesh` over the same ranks drives FSDP2. Tensor-parallel ranks are neighbours (rank = data
rank x TP + tensor rank), so they share a node. The mesh is [replicas, shards, tp]: FSDP shards over
`shards` and, under HSDP, only gradients travel over `replicas`.

FSDP splits a parameter that tensor parallelism has cut on another dimension, over `shards`. One
that every tensor-parallel rank needs whole is split over `shards` and `tp` together: its optimizer
state is sharded even with one data-parallel rank, and its copies cannot drift apart. Either way the
global tensor is a plain grid of blocks, which `global_view` states as a DTensor for checkpoints:
any layout can read what any other wrote.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement

from components.lib.contract import UserError
from components.lib.train import torch_private
from components.lib.train.parallel.replicated import keep_whole
from components.lib.train.settings.config import StrategyConfig, TrainerConfig

ShardDim = Callable[[str], int | None]


@dataclass(frozen=True)
class ParallelLayout:
    """This process's place. Groups are None where the dimension has one rank."""

    rank: int
    world: int
    tp: int
    tp_rank: int
    dp: int
    dp_rank: int
    device: torch.device
    mesh: DeviceMesh
    host_mesh: DeviceMesh
    flat_mesh: DeviceMesh
    host_flat_mesh: DeviceMesh
    sequence_parallel: bool

    @property
    def tp_group(self) -> dist.ProcessGroup:
        """The ranks that share each layer."""
        return self.mesh["tp"].get_group()

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes logs and manifests."""
        return self.rank == 0

    @property
    def fsdp_mesh(self) -> DeviceMesh:
        """The mesh for `fully_shard`: 1-D, or 2-D under HSDP."""
        replicas = self.mesh.size(0)
        return self.mesh["replicas", "shards"] if replicas > 1 else self.mesh["shards"]


def start_processes(trainer: TrainerConfig, *, model_parallel: bool) -> ParallelLayout:
    """Join the process group that torchrun describes (or be alone) and cut it into a layout.

    ``model_parallel`` also sets up megatron-core's groups. Raises UserError when the number of
    processes does not fit the layout.
    """
    strategy = trainer.strategy
    cuda = torch.cuda.is_available() and trainer.accelerator != "cpu"
    if trainer.accelerator == "gpu" and not cuda:
        raise UserError("trainer.accelerator=gpu, but this machine has no usable CUDA device.")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        timeout = timedelta(minutes=30)
        if "RANK" in os.environ:
            dist.init_process_group(backend, timeout=timeout)
        else:
            store = dist.HashStore()
            dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
    world, rank, tp = dist.get_world_size(), dist.get_rank(), strategy.tensor_model_parallel_size
    check_layout(strategy, world)
    dp = world // tp
    if model_parallel:
        # This import also silences megatron-core's remarks about packages that are not used.
        from components.lib.cosmos.dit.parallel import parallel_state

        if not parallel_state.model_parallel_is_initialized():
            parallel_state.initialize_model_parallel(tensor_model_parallel_size=tp)
    shape = (strategy.data_parallel_replicas, dp // strategy.data_parallel_replicas, tp)
    names = ("replicas", "shards", "tp")
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
    host_mesh = init_device_mesh("cpu", shape, mesh_dim_names=names) if cuda else mesh
    flat, flat_names = (shape[0], shape[1] * tp), ("replicas", "all")
    flat_mesh = init_device_mesh(device.type, flat, mesh_dim_names=flat_names)
    host_flat_mesh = init_device_mesh("cpu", flat, mesh_dim_names=flat_names) if cuda else flat_mesh
    return ParallelLayout(
        rank=rank,
        world=world,
        tp=tp,
        tp_rank=rank % tp,
        dp=dp,
        dp_rank=rank // tp,
        device=device,
        mesh=mesh,
        host_mesh=host_mesh,
        flat_mesh=flat_mesh,
        host_flat_mesh=host_flat_mesh,
        sequence_parallel=strategy.sequence_parallel and tp > 1,
    )


def stop_processes() -> None:
    """Leave all process groups, so that this process could join others."""
    # Importing megatron-core takes seconds; who has not done so has no groups of it.
    parallel_state = sys.modules.get("megatron.core.parallel_state")
    if parallel_state is not None and parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def check_layout(strategy: StrategyConfig, world: int) -> None:
    """Raises UserError unless ``world`` ranks can be cut into this layout."""
    tp, replicas = strategy.tensor_model_parallel_size, strategy.data_parallel_replicas
    assert tp and replicas, "a size of 0 is resolved before (choices.resolve_layout)"
    if world % tp:
        raise UserError(
            f"trainer.strategy.tensor_model_parallel_size={tp} does not divide {world} processes."
        )
    if (world // tp) % replicas:
        raise UserError(
            f"trainer.strategy.data_parallel_replicas={replicas} does not divide "
            f"{world // tp} data-parallel ranks."
        )


def shard_model(
    model: nn.Module,
    units: Iterable[nn.Module],
    layout: ParallelLayout,
    trainer: TrainerConfig,
    shard_dim: ShardDim,
) -> None:
    """FSDP2 over each of ``units`` and then over the rest of the model, in place.

    ``shard_dim`` names the dimension that tensor parallelism splits, if any, by parameter name.
    A model that tensor parallelism never splits is a small one: with as many replicas as ranks each
    keeps it whole, since FSDP would be overhead (`components.lib.train.parallel.replicated`).
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    bf16 = torch.bfloat16 if trainer.precision == "bf16-mixed" else None
    if layout.mesh.size(0) == layout.world and all(
        shard_dim(name) is None for name in names.values()
    ):
        keep_whole(model, bf16, methods=("encode",))
        return

    everywhere = torch_private.rows_over(layout.flat_mesh) if layout.tp > 1 else None

    def place(parameter: nn.Parameter) -> Any:
        if layout.tp == 1:
            return Shard(0)
        dim = shard_dim(names[id(parameter)])
        if dim is None:
            return everywhere
        if dim == 1:
            return Shard(0)
        shards = layout.mesh.size(1)
        if parameter.shape[1] % shards:
            raise UserError(
                f"{names[id(parameter)]} has {parameter.shape[1]} columns, which {shards} "
                "data-parallel shards do not divide. Set trainer.strategy.data_parallel_replicas "
                "so that fewer ranks share the state."
            )
        return Shard(1)

    policy = MixedPrecisionPolicy(
        param_dtype=bf16,
        reduce_dtype=torch.float32 if bf16 else None,
        cast_forward_inputs=False,
    )
    reduce_in_place = ReduceInPlace(layout.device) if layout.device.type == "cuda" else None
    for module in [*units, model]:
        fully_shard(
            module,
            mesh=layout.fsdp_mesh,
            mp_policy=policy,
            shard_placement_fn=place,
            reshard_after_forward=trainer.strategy.reshard_after_forward
            if module is not model
            else False,
        )
        if reduce_in_place is not None:
            torch_private.set_reduce_scatter(module, reduce_in_place)


class ReduceInPlace(torch_private.ReduceScatter):
    """FSDP's reduce-scatter, with its results in the memory that activations leave.

    FSDP allocates the sharded gradients on its communication stream, and memory that one stream
    has had is not given to another. So on top of the activations at their most, all gradients
    needed memory of their own, and a GPU that was planned full ran out twice a step (14B on an
    H200: 0.3 s of 8.6 s).
    """

    def __init__(self, device: torch.device) -> None:
        self._compute = torch.cuda.current_stream(device)

    def allocate(
        self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """A buffer from the computing stream's memory, which the current stream may use at once.

        FSDP has just made its stream wait for the computing one.
        """
        with torch.cuda.stream(self._compute):
            buffer = torch.empty(*size, dtype=dtype, device=device)
        current = torch.cuda.current_stream(device)
        if current != self._compute:
            buffer.record_stream(current)  # freed early when gradients are accumulated
        return buffer

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> Any:
        """The reduce-scatter itself."""
        return dist.reduce_scatter_tensor(
            output_tensor, input_tensor, op=op, group=group, async_op=async_op
        )


def local_part(value: torch.Tensor) -> torch.Tensor:
    """This rank's part of a sharded tensor; any other tensor itself."""
    return value.to_local() if isinstance(value, DTensor) else value


def global_view(
    local: torch.Tensor, like: torch.Tensor, layout: ParallelLayout, tp_dim: int | None
) -> DTensor:
    """``local``, on the host, as this rank's block of the global tensor over the whole mesh.

    ``like`` is the parameter whose shard ``local`` belongs to (a weight, a moment, an EMA), or
    which each process holds whole.
    """
    sharded = like.placements[-1] if isinstance(like, DTensor) else Shard(0)
    placements: tuple[Placement, ...] = (Replicate(), sharded)
    mesh = layout.host_flat_mesh
    shape = list(like.shape)
    if tp_dim is not None and layout.tp > 1:
        mesh = layout.host_mesh
        placements = (*placements, Shard(tp_dim))
        shape[tp_dim] *= layout.tp
    strides = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        local,
        mesh,
        placements,
        run_check=False,
        shape=torch.Size(shape),
        stride=strides,
    )
