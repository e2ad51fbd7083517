"""Core attention of the DiT: PyTorch's scaled-dot-product attention with a choice of kernel.

``auto`` prefers cuDNN, whose backward pass is measured 1.75 times as fast as flash's on Hopper,
and falls back in order. On CPU every choice but ``math`` means PyTorch's default.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from components.lib.cosmos.flash4 import flash4

AttentionBackend = Literal["auto", "cudnn", "flash4", "flash", "efficient", "math"]

_KERNELS: dict[AttentionBackend, list[SDPBackend]] = {
    "auto": [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ],
    "cudnn": [SDPBackend.CUDNN_ATTENTION],
    "flash": [SDPBackend.FLASH_ATTENTION],
    "efficient": [SDPBackend.EFFICIENT_ATTENTION],
    "math": [SDPBackend.MATH],
}

#: The operators whose outputs selective checkpointing keeps, on every device and backend.
ATTENTION_OPS = [
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.cosmos.flash4.default,
]

#: What ``light`` checkpointing keeps: only elementwise work is done again. Not ``bmm``, with which
#: each part of a block ends (`gated_linear`): nothing in the backward pass asks for its result.
PRODUCT_OPS = [
    *ATTENTION_OPS,
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
]


def attend(query: Tensor, key: Tensor, value: Tensor, backend: AttentionBackend) -> Tensor:
    """Full attention without mask: [S, B, heads, d] x [L, B, heads, d] -> [S, B, heads · d]."""
    if query.is_cuda and backend == "flash4":
        attended, _ = flash4(*(part.transpose(0, 1) for part in (query, key, value)))
        return attended.transpose(0, 1).flatten(2)
    q, k, v = (part.permute(1, 2, 0, 3) for part in (query, key, value))
    if query.is_cuda or backend == "math":
        with sdpa_kernel(_KERNELS[backend], set_priority=True):
            out = F.scaled_dot_product_attention(q, k, v)
    else:
        out = F.scaled_dot_product_attention(q, k, v)
    return out.permute(2, 0, 1, 3).flatten(2)
