"""What is used of flash-attn-4 beyond its public names. Written against flash-attn-4 4.0.

Why: its public function brings an autograd function of its own, which breaks compiled graphs and
hides from selective checkpointing. On an upgrade: do the two inner functions still take these
arguments and begin their results with these tensors? Newer releases extend both at the end only.
`tests/test_foreign_private.py` keeps such uses in files of this kind.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def forward(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp. ModuleNotFoundError without the package."""
    from flash_attn.cute.interface import _flash_attn_fwd

    out, log_sum_exp, *_ = _flash_attn_fwd(query, key, value, return_lse=True)
    return out, log_sum_exp


def backward(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, grad: Tensor, log_sum_exp: Tensor
) -> Sequence[Tensor]:
    """Gradients of query, key and value; ``grad`` must be contiguous."""
    from flash_attn.cute.interface import _flash_attn_bwd

    gradients: Sequence[Tensor] = _flash_attn_bwd(query, key, value, out, grad, log_sum_exp)
    return gradients[:3]
