"""Tensor and sequence parallelism of the DiT: weights from megatron-core, collectives that trace.

The weights are megatron-core's ``ColumnParallelLinear`` and ``RowParallelLinear`` (its partition
rules and parameter attributes, its `parallel_state` groups). Their own ``forward`` is not used: it
issues one collective per matrix, while here a block gathers its input once for q, k and v. Nor are
its mappings: for sequence parallelism they allocate on CUDA whatever the tensor's device, and an
all-reduce of a tensor that is not contiguous is lost. The maps below call PyTorch's functional
collectives, which a compiler traces and which run with gloo as with NCCL.

Activations are sequence first, [tokens, batch, hidden], so that sequence parallelism cuts
dimension 0 into contiguous pieces. Token counts that do not divide by the group are padded with
zero rows which never enter attention.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from components.lib.cosmos.torch_private import (
    all_gather,
    all_reduce,
    drop_load_hooks,
    reduce_scatter,
)

with warnings.catch_warnings():
    # megatron-core warns at import that Transformer Engine and Apex are absent; neither is used
    warnings.simplefilter("ignore")
    from megatron.core import parallel_state
    from megatron.core.model_parallel_config import ModelParallelConfig
    from megatron.core.tensor_parallel.layers import (
        ColumnParallelLinear,
        RowParallelLinear,
        set_tensor_model_parallel_attributes,
    )


def tensor_parallel_group() -> ProcessGroup | None:
    """The tensor-parallel group, or None when there is none or it has one member."""
    if not torch.distributed.is_initialized() or not parallel_state.is_initialized():
        return None
    group = parallel_state.get_tensor_model_parallel_group()
    return group if group.size() > 1 else None


def _megatron_config() -> ModelParallelConfig:
    return ModelParallelConfig(
        params_dtype=torch.get_default_dtype(),
        use_cpu_initialization=True,  # allocate where torch's device context says, meta included
        perform_initialization=False,
    )


class _Bare:
    """Undo megatron-core's extra state: an official state dict has tensors only."""

    get_extra_state = nn.Module.get_extra_state
    set_extra_state = nn.Module.set_extra_state


class ColumnLinear(_Bare, ColumnParallelLinear):
    """[*, in] -> [*, out / TP], no bias: each rank holds a slice of the output features."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(
            in_features,
            out_features,
            config=_megatron_config(),
            init_method=nn.init.xavier_uniform_,
            bias=False,
            gather_output=False,
            tp_group=tensor_parallel_group(),
        )
        _finish(self, 0)

    def forward(self, x: Tensor) -> Tensor:
        """The local product. The caller maps x into the tensor-parallel region."""
        return F.linear(x, self.weight)


class RowLinear(_Bare, RowParallelLinear):
    """[*, in / TP] -> [*, out], no bias: a partial sum that the caller reduces over the group."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(
            in_features,
            out_features,
            config=_megatron_config(),
            init_method=nn.init.xavier_uniform_,
            bias=False,
            input_is_parallel=True,
            skip_bias_add=False,
            tp_group=tensor_parallel_group(),
        )
        _finish(self, 1)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """gate * the local partial product, for a ``gate`` [B, out]."""
        return gated_linear(x, self.weight, gate)


def gated_linear(x: Tensor, weight: Tensor, gate: Tensor) -> Tensor:
    """gate * (x Wᵀ): x [T, B, in], weight [out, in], gate [B, out] -> [T, B, out].

    With one sample the gate scales the weight instead, x (gate * W)ᵀ. The gate's gradient then
    comes from the weight's, which is computed anyway, and no longer needs the product: half of the
    matrix work that recomputation would repeat is not repeated, and a block keeps three activations
    less. The scaled weight is rounded where the scaled product was. Being a batched product tells
    it from those that light checkpointing keeps (`PRODUCT_OPS`).
    """
    if gate.shape[0] == 1:
        scaled = (weight * gate.mT).mT
        return torch.bmm(x.transpose(0, 1), scaled[None]).transpose(0, 1)
    return F.linear(x, weight) * gate


def mark_cut(parameter: nn.Parameter, dim: int) -> None:
    """Say that each rank of a tensor-parallel group holds a part of it along ``dim``."""
    set_tensor_model_parallel_attributes(parameter, True, dim, 1)


def _finish(layer: Any, dim: int) -> None:
    mark_cut(layer.weight, dim)
    drop_load_hooks(layer)  # it would insert the extra-state key


class TensorParallel:
    """How one model is cut over a tensor-parallel group. With ``group`` None every map is identity.

    ``sequence`` adds sequence parallelism: between the parallel regions each rank holds
    ``rows(tokens)`` of the tokens.
    """

    def __init__(self, group: ProcessGroup | None, sequence: bool = False) -> None:
        self.size = group.size() if group is not None else 1
        self.rank = group.rank() if group is not None else 0
        self.name = str(group.group_name) if group is not None else ""
        self.sequence = sequence and self.size > 1

    def rows(self, tokens: int) -> int:
        """Rows each rank holds outside the parallel regions."""
        return -(-tokens // self.size) if self.sequence else tokens

    def local(self, x: Tensor) -> Tensor:
        """This rank's rows of a replicated [tokens, …]. Its gradient stays partial."""
        if not self.sequence:
            return x
        rows = self.rows(x.shape[0])
        return _pad_rows(x, rows * self.size).narrow(0, self.rank * rows, rows)

    def enter(self, x: Tensor, tokens: int) -> Tensor:
        """Into a parallel region: all tokens on every rank; gradients are summed over ranks."""
        if self.size == 1:
            return x
        if self.sequence:
            return _Gather.apply(x, self.name, self.size, -1)[:tokens]
        return _Copy.apply(x, self.name)

    def share(self, x: Tensor) -> Tensor:
        """A tensor that all ranks hold alike, for use on partial results.

        Its gradient on a rank is then a part. With sequence parallelism so is that of everything
        that is not cut, and one rule sums them; without, it is summed here.
        """
        return x if self.size == 1 or self.sequence else _Copy.apply(x, self.name)

    def leave(self, x: Tensor) -> Tensor:
        """Out of a parallel region: sum the partial results; with sequence, keep own rows."""
        if self.size == 1:
            return x
        if self.sequence:
            padded = _pad_rows(x, self.rows(x.shape[0]) * self.size)
            return _ReduceScatter.apply(padded, self.name, self.size)
        return _Reduce.apply(x, self.name)

    def collect(self, x: Tensor, tokens: int) -> Tensor:
        """All tokens on every rank, for computation that is the same on every rank.

        The gradient that comes back is already whole on each rank, so each takes its own rows;
        summing it over the ranks instead would make every gradient TP times too large.
        """
        if not self.sequence:
            return x
        return _Gather.apply(x, self.name, self.size, self.rank)[:tokens]


def _pad_rows(x: Tensor, rows: int) -> Tensor:
    missing = rows - x.shape[0]
    return F.pad(x, (0, 0) * (x.dim() - 1) + (0, missing)) if missing else x


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
        ctx.name = name
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return all_reduce(grad, ctx.name), None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
        return all_reduce(x, name)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Gather(torch.autograd.Function):
    """``keep``: the rank whose rows of a whole gradient are its own, or -1 to sum partial ones."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, size: int, keep: int) -> Tensor:
        ctx.name, ctx.size, ctx.keep, ctx.rows = name, size, keep, x.shape[0]
        return all_gather(x, name, size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        if ctx.keep < 0:
            return reduce_scatter(grad, ctx.name, ctx.size), None, None, None
        return grad.narrow(0, ctx.keep * ctx.rows, ctx.rows).contiguous(), None, None, None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, size: int) -> Tensor:
        ctx.name, ctx.size = name, size
        return reduce_scatter(x, name, size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return all_gather(grad, ctx.name, ctx.size), None, None
