"""The gate in the last product of each part of a block, and what a block therefore keeps."""

from __future__ import annotations

import pytest
import torch

from components.lib.cosmos.dit.block import Checkpointing
from components.lib.cosmos.dit.config import DIT_PRESETS
from components.lib.cosmos.dit.network import DiT
from components.lib.cosmos.dit.parallel import gated_linear
from components.lib.cosmos.flops import KEPT
from tests.lib.cosmos.dit.held import held_by_block

CONFIG = DIT_PRESETS["7B"].model_copy(
    update={
        "layers": 1,
        "hidden": 128,
        "heads": 4,
        "ffn": 512,
        "text_dim": 8,
        "text_tokens": 8,
        "adaln_rank": 4,
    }
)
TOKENS = 1024


@pytest.mark.parametrize("samples", [1, 3])
def test_a_gated_product_and_its_gradients_are_the_formula(samples: int) -> None:
    torch.manual_seed(0)
    sizes = ((5, samples, 4), (6, 4), (samples, 6))
    ours = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]
    plain = [value.detach().clone().requires_grad_() for value in ours]
    out = gated_linear(*ours)
    x, weight, gate = plain
    expected = gate * (x @ weight.T)
    torch.testing.assert_close(out, expected)
    direction = torch.randn_like(out)
    out.backward(direction)
    expected.backward(direction)
    for left, right in zip(ours, plain, strict=True):
        torch.testing.assert_close(left.grad, right.grad)


def kept(mode: Checkpointing) -> float:
    """Activations of tokens x hidden that autograd holds after a compiled block's forward pass."""
    return held_by_block(DiT(CONFIG, seed=0).bfloat16(), mode, TOKENS)


@pytest.mark.parametrize("mode", ["full", "selective", "light"])
def test_a_block_keeps_what_the_plan_counts_with(mode: Checkpointing) -> None:
    # of attention each backend keeps a little more of its own, the softmax's sums
    assert KEPT[mode] - 0.2 < kept(mode) <= KEPT[mode]


def test_no_product_is_kept_for_the_gate() -> None:
    # q, k, v, attention and its product; the text's q and product; the wide layer's 4: and the
    # input. Not the last product: nothing of this block comes after it.
    assert kept("light") == pytest.approx(12, abs=0.5)
