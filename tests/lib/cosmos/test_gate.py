"""The gate in the last product of each part of a block, and what a block therefore keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from components.lib.cosmos.dit import DiT, configure_blocks
from components.lib.cosmos.dit_block import Checkpointing, TransformerBlock
from components.lib.cosmos.dit_config import DIT_PRESETS
from components.lib.cosmos.flops import KEPT
from components.lib.cosmos.parallel import gated_linear

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
    torch.manual_seed(0)
    model = DiT(CONFIG, seed=0).bfloat16()
    configure_blocks(model, checkpointing=mode)
    block = model.blocks["block0"]
    assert isinstance(block, TransformerBlock)
    block.compile_run("aot_eager_decomp_partition")
    x = torch.randn(TOKENS, 1, 128, dtype=torch.bfloat16, requires_grad=True)
    noise, shared = (
        torch.randn(1, n, dtype=torch.bfloat16, requires_grad=True) for n in (128, 384)
    )
    angles = [torch.randn(TOKENS, 1, 1, CONFIG.head_dim, dtype=torch.bfloat16) for _ in "cs"]
    given = [torch.randn_like(x), torch.randn(8, 1, 8, dtype=torch.bfloat16), *angles]
    known = {value.untyped_storage().data_ptr() for value in [*given, *model.parameters()]}
    held: dict[int, int] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in known:
            held[storage.data_ptr()] = storage.nbytes()
        return value

    def unpack(value: Any) -> Any:
        return value

    positions, text, *rotary = given
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        block(x, positions, noise, shared, text, (rotary[0], rotary[1]), TOKENS)
    return sum(held.values()) / (TOKENS * 128 * 2)


@pytest.mark.parametrize("mode", ["full", "selective", "light"])
def test_a_block_keeps_what_the_plan_counts_with(mode: Checkpointing) -> None:
    # of attention each backend keeps a little more of its own, the softmax's sums
    assert KEPT[mode] - 0.2 < kept(mode) <= KEPT[mode]


def test_no_product_is_kept_for_the_gate() -> None:
    # q, k, v, attention; q of the text's attention; the wide layer's 4: and the input
    assert kept("light") == pytest.approx(10, abs=0.5)
