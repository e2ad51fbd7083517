"""Gradient sums over the tensor-parallel group, the global norm, and clipping.

Two things go wrong silently without this. Parameters that every tensor-parallel rank holds but
which see only a part of the tokens or heads (q/k norms; with sequence parallel also the modulation)
have partial gradients, to be summed. And the global norm must count a split parameter's blocks
once each and a replicated parameter once: the stock norm gives every rank another value, and Adam
hides it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from components.lib.train.layout import Layout, ShardDim


def local_grad(parameter: nn.Parameter) -> torch.Tensor | None:
    """This rank's shard of the gradient."""
    grad = parameter.grad
    return grad.to_local() if isinstance(grad, DTensor) else grad


def sum_partial_gradients(
    parameters: Mapping[str, nn.Parameter], partial: Iterable[str], layout: Layout
) -> None:
    """Sum the gradients named in ``partial`` over the tensor-parallel group, in one message."""
    if layout.tp == 1:
        return
    grads = [local_grad(parameters[name]) for name in sorted(partial)]
    held = [grad for grad in grads if grad is not None and grad.numel()]
    if not held:
        return
    flat = torch.cat([grad.reshape(-1) for grad in held])
    dist.all_reduce(flat, group=layout.tp_group)
    offset = 0
    for grad in held:
        grad.copy_(flat[offset : offset + grad.numel()].view_as(grad))
        offset += grad.numel()


def global_norm(
    parameters: Mapping[str, nn.Parameter], shard_dim: ShardDim, layout: Layout
) -> torch.Tensor:
    """L2 norm of the whole gradient, fp32, the same on every rank.

    Every entry of the global gradient is counted once: under FSDP each data rank holds another
    shard; HSDP replicas and tensor-parallel copies hold the same one and are divided out.
    """
    squares = torch.zeros((), dtype=torch.float32, device=layout.device)
    replicas = layout.mesh.size(0)
    for name, parameter in parameters.items():
        grad = local_grad(parameter)
        if grad is None:
            continue
        copies = replicas * (layout.tp if layout.tp > 1 and shard_dim(name) is None else 1)
        squares += grad.float().pow(2).sum() / copies
    dist.all_reduce(squares)
    return squares.sqrt()


def clip(parameters: Iterable[nn.Parameter], norm: torch.Tensor, limit: float) -> None:
    """Scale all gradients so that the global norm is at most ``limit``; 0 leaves them alone."""
    if limit <= 0:
        return
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    for parameter in parameters:
        grad = local_grad(parameter)
        if grad is not None:
            grad.mul_(scale)
