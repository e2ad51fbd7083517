"""FlashAttention-4's operators: gradients, compiled graphs and what checkpointing keeps.

The package's kernels need a Hopper GPU; here plain products stand in for them, under the operators'
own names, so that everything around the kernels is what runs on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from components.lib.cosmos.dit.attention import ATTENTION_OPS, worth_keeping
from components.lib.cosmos.dit.flash4 import flash4

calls: list[str] = []


def forward(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    calls.append("forward")
    scores = torch.einsum("bshd,blhd->bhsl", query, key) / math.sqrt(query.shape[-1])
    out = torch.einsum("bhsl,blhd->bshd", scores.softmax(-1), value)
    return out.contiguous(), scores.logsumexp(-1)


def backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, log_sum_exp: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    scale = 1 / math.sqrt(query.shape[-1])
    scores = torch.einsum("bshd,blhd->bhsl", query, key) * scale
    weights = (scores - log_sum_exp[..., None]).exp()
    of_weights = torch.einsum("bshd,blhd->bhsl", grad, value)
    of_scores = weights * (of_weights - (grad * out).sum(-1).transpose(1, 2)[..., None]) * scale
    return (
        torch.einsum("bhsl,blhd->bshd", of_scores, key).contiguous(),
        torch.einsum("bhsl,bshd->blhd", of_scores, query).contiguous(),
        torch.einsum("bhsl,bshd->blhd", weights, grad).contiguous(),
    )


@pytest.fixture(autouse=True)
def plain_kernels() -> Iterator[None]:
    library = torch.library.Library("cosmos", "FRAGMENT")
    torch.library.register_kernel("cosmos::flash4", "cpu", forward, lib=library)
    torch.library.register_kernel("cosmos::flash4_backward", "cpu", backward, lib=library)
    calls.clear()
    yield
    library._destroy()


def inputs() -> list[Tensor]:
    torch.manual_seed(0)
    shapes = ((2, 9, 3, 8), (2, 5, 3, 8), (2, 5, 3, 8))
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def reference(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


@pytest.mark.parametrize("compiled", [False, True])
def test_values_and_gradients_are_those_of_attention(compiled: bool) -> None:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return flash4(query, key, value)[0].sin()

    run = torch.compile(attend, fullgraph=True, backend="aot_eager") if compiled else attend
    found, wanted = inputs(), inputs()
    out, plain = run(*found), reference(*wanted).sin()
    torch.testing.assert_close(out, plain)
    out.square().sum().backward()
    plain.square().sum().backward()
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_selective_checkpointing_does_not_attend_again() -> None:
    def part(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return flash4(query.cos(), key, value)[0].sin()

    policy = partial(worth_keeping, ATTENTION_OPS)
    keep = partial(create_selective_checkpoint_contexts, policy)
    checkpoint(part, *inputs(), use_reentrant=False, context_fn=keep).sum().backward()
    assert calls == ["forward"]
    checkpoint(part, *inputs(), use_reentrant=False).sum().backward()
    assert calls == ["forward"] * 3


def test_the_operators_follow_the_rules_of_the_compiler() -> None:
    for test in ("test_schema", "test_autograd_registration", "test_faketensor"):
        torch.library.opcheck(flash4, tuple(inputs()), test_utils=test)
