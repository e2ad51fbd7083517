"""What a compiled block of a DiT holds for its backward pass, counted from autograd itself."""

from __future__ import annotations

from typing import Any

import torch

from components.lib.cosmos.dit.block import Checkpointing, TransformerBlock
from components.lib.cosmos.dit.network import DiT, configure_blocks


def held_by_block(model: DiT, checkpointing: Checkpointing, tokens: int) -> float:
    """Activations of tokens x hidden in bf16 after the forward pass of a bf16 ``model``'s block."""
    torch._dynamo.reset()  # graphs are counted, and other tests have made theirs
    torch.manual_seed(0)
    config = model.config
    configure_blocks(model, checkpointing=checkpointing)
    block = model.blocks["block0"]
    assert isinstance(block, TransformerBlock)
    # The partition of work and results that inductor makes, without its kernels.
    block.compile_ways("aot_eager_decomp_partition")
    hidden, bf16 = config.hidden, torch.bfloat16
    x = torch.randn(tokens, 1, hidden, dtype=bf16, requires_grad=True)
    noise, shared = (
        torch.randn(1, size, dtype=bf16, requires_grad=True) for size in (hidden, 3 * hidden)
    )
    angles = [torch.randn(tokens, 1, 1, config.head_dim, dtype=bf16) for _ in "cs"]
    text = torch.randn(config.text_tokens, 1, config.text_dim, dtype=bf16)
    given = [torch.randn_like(x), text, *angles]
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
        block(x, positions, noise, shared, text, (rotary[0], rotary[1]), tokens)
    return sum(held.values()) / (tokens * hidden * 2)
