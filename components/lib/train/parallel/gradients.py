"""Gradient sums over the tensor-parallel group, the global norm, and clipping.

Two things go wrong silently without this. Parameters that every tensor-parallel rank holds but
which see only a part of the tokens or heads (q/k norms; with sequence parallel also the modulation)
have partial gradients, to be summed. And the global norm must count every entry once: the stock
norm gives every tensor-parallel rank another value, and Adam hides it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from components.lib.train import torch_private
from components.lib.train.parallel.layout import ParallelLayout, local_part


def local_grad(parameter: nn.Parameter) -> torch.Tensor | None:
    """This rank's shard of the gradient."""
    return None if parameter.grad is None else local_part(parameter.grad)


def complete_partial_gradients(
    parameters: Mapping[str, nn.Parameter], partial: Iterable[str], layout: ParallelLayout
) -> None:
    """Make the gradients named in ``partial`` sums over the tensor-parallel group.

    Parameters that tensor parallelism does not cut are sharded over it too, so FSDP has averaged
    their gradients over the group. For whole gradients that changes nothing; partial ones lack the
    factor.
    """
    if layout.tp == 1:
        return
    for name in partial:
        grad = local_grad(parameters[name])
        if grad is not None:
            grad.mul_(layout.tp)


def average_over_replicas(parameters: Iterable[nn.Parameter], layout: ParallelLayout) -> None:
    """Average the gradients of parameters that every rank holds whole, in one collective for all.

    All ranks get the same bits, so their copies cannot drift apart. FSDP has averaged those of
    sharded parameters already.
    """
    if layout.world == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None and not isinstance(p, DTensor)]
    if not grads:
        return
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    dist.all_reduce(flat)
    flat /= layout.world
    sizes = [grad.numel() for grad in grads]
    views = [part.view(grad.shape) for part, grad in zip(flat.split(sizes), grads, strict=True)]
    torch_private.foreach_copy(grads, views)


def global_norm(parameters: Iterable[nn.Parameter], layout: ParallelLayout) -> torch.Tensor:
    """L2 norm of the whole gradient, fp32, the same on every rank.

    Every rank holds another part of the global gradient, but for replicas, which hold the same one;
    their copies are divided out.
    """
    squares = torch.zeros((), dtype=torch.float32, device=layout.device)
    grads = [grad for parameter in parameters if (grad := local_grad(parameter)) is not None]
    if grads:
        # One kernel for many tensors: a tokenizer has hundreds of small ones.
        norms = torch_private.foreach_norm([grad.float() for grad in grads])
        squares += torch.stack(norms).pow(2).sum()
    dist.all_reduce(squares)
    return (squares / layout.mesh.size(0)).sqrt()


def clip(parameters: Iterable[nn.Parameter], norm: torch.Tensor, limit: float) -> None:
    """Scale all gradients so that the global norm is at most ``limit``; 0 leaves them alone."""
    if limit <= 0:
        return
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    grads = [grad for parameter in parameters if (grad := local_grad(parameter)) is not None]
    if grads:
        torch_private.foreach_mul(grads, scale)
