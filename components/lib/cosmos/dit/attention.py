"""Core attention of the DiT with a choice of kernel.

``auto`` means FlashAttention-4 on Hopper GPUs where its package is there: forward and backward of
56,320 tokens take it 285 ms, cuDNN 327 ms, PyTorch's own flash kernels nearly twice that (H200,
bf16). Then cuDNN, and so on in order. FlashAttention-4 computes in bf16 and fp16; calls in fp32
take the others. On CPU every choice but ``math`` means PyTorch's default.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointPolicy

from components.lib.contract import UserError
from components.lib.cosmos.dit.flash4 import flash4, usable
from components.lib.cosmos.torch_private import SDPA_OPS, SUM_OPS, OpOverload

AttentionBackend = Literal["auto", "cudnn", "flash4", "flash", "efficient", "math"]

_IN_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
_KERNELS: dict[AttentionBackend, list[SDPBackend]] = {
    "auto": _IN_ORDER,
    "flash4": _IN_ORDER,
    "cudnn": [SDPBackend.CUDNN_ATTENTION],
    "flash": [SDPBackend.FLASH_ATTENTION],
    "efficient": [SDPBackend.EFFICIENT_ATTENTION],
    "math": [SDPBackend.MATH],
}

#: The operators whose outputs selective checkpointing keeps, on every device and backend.
ATTENTION_OPS = [
    *SDPA_OPS,
    torch.ops.cosmos.flash4.default,
]

#: Of FlashAttention-4 on Hopper.
LARGEST_HEAD = 256

#: What ``light`` checkpointing keeps: only elementwise work is done again.
PRODUCT_OPS = [
    *ATTENTION_OPS,
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
]
#: And the product with which each part of a block ends (`gated_linear`), for the next part's norm;
#: under tensor parallelism its sum over the ranks instead, so that no communication is repeated.
LAST_PRODUCT_OPS = [torch.ops.aten.bmm.default]


def worth_keeping(
    kept: Sequence[OpOverload], _: object, op: OpOverload, *inputs: Any, **__: Any
) -> CheckpointPolicy:
    """Selective checkpointing's policy: keep what the operators in ``kept`` return.

    But for what costs little for a result of that size. Attention to a short text costs a hundredth
    of attention to the video: in its place a matrix product or two can be kept, each four times as
    dear. A low-rank update's last product costs no more than writing it; kept, it would double what
    ``light`` holds.
    """
    if op not in kept:
        return CheckpointPolicy.PREFER_RECOMPUTE
    if op in SUM_OPS:
        cheap = False
    elif op in ATTENTION_OPS:
        cheap = inputs[1].numel() * 16 <= inputs[0].numel()
    else:
        inner, outer = inputs[-1].shape[-2:]
        cheap = inner * 16 <= outer
    return CheckpointPolicy.PREFER_RECOMPUTE if cheap else CheckpointPolicy.MUST_SAVE


def choose(backend: AttentionBackend, device: torch.device, head_dim: int) -> AttentionBackend:
    """What ``backend`` means on this device. UserError for a flash4 that cannot run there."""
    if device.type != "cuda" or backend not in ("auto", "flash4"):
        return backend
    problem = _flash4_problem(device)
    if problem is None and (head_dim % 8 or head_dim > LARGEST_HEAD):
        problem = f"heads of {head_dim}, where it takes multiples of 8 up to {LARGEST_HEAD}"
    if problem is None:
        return "flash4"
    if backend == "flash4":
        raise UserError(
            f"trainer.attention=flash4: {problem}. Set trainer.attention=auto, which takes the "
            "fastest kernel that is there."
        )
    return "auto"


@cache
def _flash4_problem(device: torch.device) -> str | None:
    if torch.cuda.get_device_capability(device)[0] != 9:
        return f"{torch.cuda.get_device_name(device)} is no Hopper GPU"
    problem = usable()
    if problem is not None:
        logging.getLogger("cosmos.train").info(
            "attention without FlashAttention-4, which is an eighth faster: %s", problem
        )
    return problem


def attend(query: Tensor, key: Tensor, value: Tensor, backend: AttentionBackend) -> Tensor:
    """Full attention without mask: [S, B, heads, d] x [L, B, heads, d] -> [S, B, heads · d]."""
    if query.is_cuda and backend == "flash4" and query.dtype in (torch.bfloat16, torch.float16):
        attended, _ = flash4(*(part.transpose(0, 1) for part in (query, key, value)))
        return attended.transpose(0, 1).flatten(2)
    q, k, v = (part.permute(1, 2, 0, 3) for part in (query, key, value))
    if query.is_cuda or backend == "math":
        with sdpa_kernel(_KERNELS[backend], set_priority=True):
            out = F.scaled_dot_product_attention(q, k, v)
    else:
        out = F.scaled_dot_product_attention(q, k, v)
    return out.permute(2, 0, 1, 3).flatten(2)
