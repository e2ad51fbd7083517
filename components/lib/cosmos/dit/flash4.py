"""FlashAttention-4 (package ``flash-attn-4``, optional) as operators that compile and checkpoint.

The package writes its kernels in CuTe's Python and compiles them on first use, some seconds for
each head size. Its own autograd function breaks compiled graphs and hides from selective
checkpointing; PyTorch's prototype that puts it behind ``scaled_dot_product_attention`` expects
another release of it. So forward and backward are two operators here, with shapes that the compiler
can follow, around the package's two inner functions.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from components.lib.cosmos.dit import flash_attn_private


def usable() -> str | None:
    """None when the package can be imported, else what is wrong with it. Takes seconds."""
    try:
        importlib.import_module("flash_attn.cute.interface")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "flash_attn":
            return "the package flash-attn-4 is not installed"
        return f"flash-attn-4 needs the package {error.name}, which is not installed"
    except (ImportError, OSError, RuntimeError) as error:
        return f"flash-attn-4 does not load: {error}"
    return None


@torch.library.custom_op("cosmos::flash4", mutates_args=())
def flash4(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """[B, S, heads, d], twice [B, L, heads, d] -> [B, S, heads, d], log-sum-exp [B, heads, S] fp32.

    Full attention, no mask. bf16 or fp16 on Hopper or newer; ModuleNotFoundError without the
    package.
    """
    return flash_attn_private.forward(query, key, value)


@flash4.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    batch, rows, heads, _ = query.shape
    out = query.new_empty((batch, rows, heads, value.shape[-1]))
    return out, query.new_empty((batch, heads, rows), dtype=torch.float32)


@torch.library.custom_op("cosmos::flash4_backward", mutates_args=())
def flash4_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, log_sum_exp: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, contiguous; ``grad`` is like ``out``."""
    gradients = flash_attn_private.backward(query, key, value, out, grad.contiguous(), log_sum_exp)
    grad_query, grad_key, grad_value = (part.contiguous() for part in gradients)
    return grad_query, grad_key, grad_value


@flash4_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, log_sum_exp: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grad_query, grad_key, grad_value = (part.new_empty(part.shape) for part in (query, key, value))
    return grad_query, grad_key, grad_value


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return flash4_backward(grad, *ctx.saved_tensors)


flash4.register_autograd(_backward, setup_context=_keep)
