"""What a network costs: floating-point operations and memory, from its settings alone.

DiT figures count matrix products and attention inside the blocks (2 operations per multiply-add)
and leave out embeddings, modulations and the final layer, together under one in a thousand at the
published sizes; MFU figures of this project use the same count, and as a formula it needs no
torch. Tokenizer figures are what torch counts while the network runs on the meta device. Memory is
an estimate for planning: parameters, gradients, optimizer state and activations, without the
allocator's slack.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Literal, cast

from pydantic import Field, PositiveInt, model_validator

from components.lib.contract import Frozen
from components.lib.cosmos.dit.config import DiTConfig
from components.lib.cosmos.shapes import meta_network, parameter_count
from components.lib.cosmos.tokenizer.config import TokenizerConfig

if TYPE_CHECKING:
    from components.lib.cosmos.tokenizer.network import CosmosTokenizer

#: Parameters, gradients, master weights and both Adam moments: fp32 shards, or bf16 with fp32.
STATE_BYTES = 16
_BF16 = 2
#: What a block keeps for its backward pass, in activations of tokens x hidden in bf16: counted from
#: what autograd holds for a compiled block, and for ``none`` from the peaks of 4 and 8 blocks on
#: H200s. An eager run keeps a little more.
KEPT = {"full": 1.1, "selective": 2.2, "light": 12.2, "none": 23.6}
#: Of these the attention outputs, which tensor parallelism cuts by heads.
_ATTENTION_OUTPUTS = {"full": 0.0, "selective": 1.0, "light": 1.0, "none": 2.0}
#: What is alive while one block runs backward, beyond that: 7 in five peaks.
WORKING = 8.0


class EstimatedLayout(Frozen):
    """How training is spread: tensor parallel inside ``gpus``, the rest shards the state."""

    gpus: PositiveInt = 1
    tp: PositiveInt = 1
    sequence_parallel: bool = False
    checkpointing: Literal["none", "light", "selective", "full"] = "selective"
    batch_per_group: PositiveInt = Field(default=1, description="Samples per tensor-parallel group")

    @model_validator(mode="after")
    def _divides(self) -> EstimatedLayout:
        if self.gpus % self.tp:
            raise ValueError(f"{self.gpus} GPUs do not divide into groups of {self.tp}")
        return self


class Memory(Frozen):
    """Bytes per GPU."""

    state: int
    activations: int

    @property
    def total(self) -> int:
        """State and activations."""
        return self.state + self.activations


def dit_forward_flops(config: DiTConfig, tokens: int) -> int:
    """One forward pass of one sample of ``tokens`` video tokens. Training costs three times it."""
    d, s, text = config.hidden, tokens, config.text_tokens
    products = 2 * s * (4 * d * d + 2 * d * d + 2 * d * config.ffn)
    text_products = 2 * text * 2 * config.text_dim * d
    return config.layers * (products + text_products + 4 * s * s * d + 4 * s * text * d)


def dit_attention_flops(config: DiTConfig, tokens: int) -> int:
    """The part of `dit_forward_flops` that is self-attention."""
    return config.layers * 4 * tokens**2 * config.hidden


def dit_memory(config: DiTConfig, tokens: int, layout: EstimatedLayout) -> Memory:
    """Memory per GPU while training."""
    total = parameter_count(config)
    block = sum(
        parameter.numel()
        for parameter in meta_network(config).get_submodule("blocks.block0").parameters()
    )
    shards = layout.gpus  # FSDP shards over the data-parallel group what TP has already cut
    state = STATE_BYTES * total / shards
    if layout.gpus > layout.tp:
        state += 2 * _BF16 * block / layout.tp  # the block at work and the next, gathered
    one = tokens * config.hidden * _BF16 * layout.batch_per_group
    rows = layout.tp if layout.sequence_parallel else 1
    by_heads = _ATTENTION_OUTPUTS[layout.checkpointing]
    kept = (KEPT[layout.checkpointing] - by_heads) / rows + by_heads / layout.tp
    activations = one * (config.layers * kept + WORKING / rows)
    return Memory(state=int(state), activations=int(activations))


@lru_cache
def video_flops(config: TokenizerConfig, frames: int, height: int, width: int) -> tuple[int, int]:
    """(encode, decode) operations of a video of any length, window by window as it is coded."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    tokenizer = cast("CosmosTokenizer", meta_network(config))
    video = torch.empty(1, 3, frames, height, width, device="meta")
    with torch.no_grad():
        with FlopCounterMode(display=False) as encode:
            latent = tokenizer.encode(video)
        with FlopCounterMode(display=False) as decode:
            tokenizer.decode(latent)
    return encode.get_total_flops(), decode.get_total_flops()
