"""What a network costs: floating-point operations and memory, from its settings alone.

DiT figures count matrix products and attention inside the blocks (2 operations per multiply-add)
and leave out embeddings, modulations and the final layer, together under one in a thousand at the
published sizes; MFU figures of this project use the same count. Tokenizer figures walk the
convolutions by name. Memory is an estimate for planning: parameters, gradients, optimizer state
and activations, without the allocator's slack.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from components.lib.contract import Frozen
from components.lib.cosmos.dit.config import DiTConfig
from components.lib.cosmos.dit.shapes import dit_shapes, parameter_count, tokenizer_shapes
from components.lib.cosmos.tokenizer.config import TokenizerConfig

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


class Layout(Frozen):
    """How training is spread: tensor parallel inside ``gpus``, the rest shards the state."""

    gpus: PositiveInt = 1
    tp: PositiveInt = 1
    sequence_parallel: bool = False
    checkpointing: Literal["none", "light", "selective", "full"] = "selective"
    batch_per_group: PositiveInt = Field(default=1, description="Samples per tensor-parallel group")

    @model_validator(mode="after")
    def _divides(self) -> Layout:
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


def dit_memory(config: DiTConfig, tokens: int, layout: Layout) -> Memory:
    """Memory per GPU while training."""
    shapes = dit_shapes(config)
    total = parameter_count(shapes)
    block = sum(math.prod(s) for name, s in shapes.items() if name.startswith("blocks.block0."))
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


def tokenizer_flops(
    config: TokenizerConfig, frames: int, height: int, width: int
) -> tuple[int, int]:
    """(encode, decode) operations of one window."""
    totals = {"encoder": 0, "decoder": 0}
    latent = (config.latent_frames(frames), height // config.spatial, width // config.spatial)
    for name, shape in tokenizer_shapes(config).items():
        if not name.endswith(".conv3d.weight"):
            continue
        part = "decoder" if name.startswith(("decoder", "post")) else "encoder"
        where = _grid(config, name, frames, height, width)
        totals[part] += 2 * math.prod(where) * math.prod(shape)
        if name.endswith("attn_1.0.q.conv3d.weight"):
            totals[part] += 4 * latent[0] * (latent[1] * latent[2]) ** 2 * shape[0]
        if name.endswith("attn_1.1.q.conv3d.weight"):
            totals[part] += 4 * latent[1] * latent[2] * latent[0] ** 2 * shape[0]
    return totals["encoder"], totals["decoder"]


@lru_cache
def video_flops(config: TokenizerConfig, frames: int, height: int, width: int) -> tuple[int, int]:
    """(encode, decode) operations of a video of any length: the sum of its windows, the last one
    padded to 8j + 1 frames."""
    encode, decode = 0, 0
    for start in range(0, frames, config.window):
        rest = min(config.window, frames - start)
        padded = (config.latent_frames(rest) - 1) * config.temporal + 1
        costs = tokenizer_flops(config, padded, height, width)
        encode, decode = encode + costs[0], decode + costs[1]
    return encode, decode


def _grid(
    config: TokenizerConfig, name: str, frames: int, height: int, width: int
) -> tuple[int, int, int]:
    """Output positions (T, H, W) of a convolution: how often space and time were halved so far."""
    last = len(config.multipliers) - 1
    space = sum(config.down_steps(i)[0] for i in range(last))
    time = sum(config.down_steps(i)[1] for i in range(last))
    if name.startswith("encoder"):
        level = int(name.split(".")[2]) if ".down." in name else last
        level = 0 if ".conv_in" in name else level
        space = sum(config.down_steps(i)[0] for i in range(min(level, last)))
        time = sum(config.down_steps(i)[1] for i in range(min(level, last)))
        if ".downsample." in name:
            halves = config.down_steps(level)
            # space first, then time: conv1 runs before time is halved
            space, time = space + halves[0], time + (halves[1] and "conv1" not in name)
    elif name.startswith("decoder"):
        order = last - int(name.split(".")[2]) if ".up." in name else 0
        order = last if ".conv_out" in name else order
        space -= sum(config.up_steps(i)[0] for i in range(order))
        time -= sum(config.up_steps(i)[1] for i in range(order))
        if ".upsample." in name:
            doubles = config.up_steps(order)
            # time first, then space: conv1 runs before space is doubled
            space, time = space - (doubles[0] and "conv1" not in name), time - doubles[1]
    patch = config.patch
    rows = (frames - 1) // (patch << time) + 1
    return rows, height // (patch << space), width // (patch << space)
