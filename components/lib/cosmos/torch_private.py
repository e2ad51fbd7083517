"""What the networks use of PyTorch beyond its public names. Written against PyTorch 2.13.

`components.lib.train.torch_private` has what distributed training uses. `tests/
test_foreign_private.py` keeps such uses in files of this kind.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch._ops import OpOverload

# Why: selective checkpointing names the operators whose results it keeps, and these have no public
# names. On an upgrade: what does `scaled_dot_product_attention` call on each device? The tests of
# recomputation count what is computed twice.
SDPA_OPS: list[OpOverload] = [
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
]
SUM_OPS: list[OpOverload] = [
    torch.ops._c10d_functional.all_reduce.default,
    torch.ops._c10d_functional.reduce_scatter_tensor.default,
]


# Why: of PyTorch's collectives only the functional ones can be traced by its compiler, and their
# public wrappers take a process group, not its name, which autograd functions cannot keep.
# On an upgrade: are these operators still what `torch.distributed._functional_collectives` calls?


def all_reduce(x: Tensor, name: str) -> Tensor:
    """The sum over the process group of this name."""
    ops = torch.ops._c10d_functional
    return ops.wait_tensor(ops.all_reduce(x.contiguous(), "sum", name))


def all_gather(x: Tensor, name: str, size: int) -> Tensor:
    """The parts of a group of ``size`` ranks, one after another along dimension 0."""
    ops = torch.ops._c10d_functional
    return ops.wait_tensor(ops.all_gather_into_tensor(x.contiguous(), size, name))


def reduce_scatter(x: Tensor, name: str, size: int) -> Tensor:
    """This rank's part, along dimension 0, of the sum over a group of ``size`` ranks."""
    ops = torch.ops._c10d_functional
    return ops.wait_tensor(ops.reduce_scatter_tensor(x.contiguous(), "sum", size, name))


def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """The table in which a module registers its children; changing it relabels them.

    Why: `add_module` refuses a name that the module has as a plain attribute. On an upgrade: does
    `Module.named_children` still read `_modules`?
    """
    return module._modules


def drop_load_hooks(module: nn.Module) -> None:
    """Take away what a module does to a state dict before it loads it.

    Why: megatron-core's layers insert keys of an extra state that this project's files have not.
    On an upgrade: is `_load_state_dict_pre_hooks` still where such hooks are registered?
    """
    module._load_state_dict_pre_hooks.clear()


def recompile_limit(count: int) -> AbstractContextManager[None]:
    """Within, a compiled function may have graphs for ``count`` shapes.

    Why: the compiler runs a ninth shape as it is. On an upgrade: is there a public setting in
    `torch.compiler` by now?
    """
    patch: AbstractContextManager[None] = torch._dynamo.config.patch(recompile_limit=count)
    return patch
