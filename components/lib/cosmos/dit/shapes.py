"""Names and shapes of every tensor of a network, by rule and without torch.

What a checkpoint must hold can be said in milliseconds and on machines without torch. Tests hold
these rules equal to the modules built on the meta device, names, shapes and order alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from components.lib.cosmos.dit.config import DiTConfig
from components.lib.cosmos.tokenizer.config import TokenizerConfig

Shapes = dict[str, tuple[int, ...]]
Entry = tuple[str, tuple[int, ...]]


def dit_shapes(config: DiTConfig) -> Shapes:
    """State dict of the DiT, whole (not cut by tensor parallelism), the counter buffer included."""
    return dict(_dit(config))


def tokenizer_shapes(config: TokenizerConfig) -> Shapes:
    """State dict of a tokenizer."""
    return dict(_tokenizer(config))


def parameter_count(shapes: Shapes) -> int:
    """Numbers that are trained: all but the counter buffer."""
    return sum(math.prod(shape) for name, shape in shapes.items() if name != "pos_embedder.seq")


def _dit(config: DiTConfig) -> Iterator[Entry]:
    hidden, rank, size = config.hidden, config.adaln_rank, config.head_dim
    frames = config.max_frames // config.patch_temporal
    height = config.max_height // config.patch_spatial
    width = config.max_width // config.patch_spatial
    yield "x_embedder.proj.1.weight", (hidden, config.in_channels * config.patch_volume)
    yield "pos_embedder.seq", (max(frames, height, width),)
    yield "extra_pos_embedder.pos_emb_h", (height, hidden)
    yield "extra_pos_embedder.pos_emb_w", (width, hidden)
    yield "extra_pos_embedder.pos_emb_t", (frames, hidden)
    yield "t_embedder.1.linear_1.weight", (hidden, hidden)
    yield "t_embedder.1.linear_2.weight", (3 * hidden, hidden)
    for layer in range(config.layers):
        for part, source in enumerate((hidden, config.text_dim, None)):
            prefix = f"blocks.block{layer}.blocks.{part}"
            if source is None:
                yield f"{prefix}.block.layer1.weight", (config.ffn, hidden)
                yield f"{prefix}.block.layer2.weight", (hidden, config.ffn)
            else:
                yield f"{prefix}.block.attn.to_q.0.weight", (hidden, hidden)
                yield f"{prefix}.block.attn.to_q.1.weight", (size,)
                yield f"{prefix}.block.attn.to_k.0.weight", (hidden, source)
                yield f"{prefix}.block.attn.to_k.1.weight", (size,)
                yield f"{prefix}.block.attn.to_v.0.weight", (hidden, source)
                yield f"{prefix}.block.attn.to_out.0.weight", (hidden, hidden)
            yield f"{prefix}.adaLN_modulation.1.weight", (rank, hidden)
            yield f"{prefix}.adaLN_modulation.2.weight", (3 * hidden, rank)
    yield "final_layer.linear.weight", (config.latent_channels * config.patch_volume, hidden)
    yield "final_layer.adaLN_modulation.1.weight", (rank, hidden)
    yield "final_layer.adaLN_modulation.2.weight", (2 * hidden, rank)
    yield "affline_norm.weight", (hidden,)


def _tokenizer(config: TokenizerConfig) -> Iterator[Entry]:
    wavelet = 3 * config.patch**3
    first, *widths = config.encoder_channels
    last = len(widths) - 1
    yield from _pair("encoder.conv_in", wavelet, first)
    wide = first
    for level, width in enumerate(widths):
        for block in range(config.res_blocks):
            yield from _resnet(f"encoder.down.{level}.block.{block}", wide, width)
            wide = width
        spatial, temporal = config.down_steps(level)
        if level < last and (spatial or temporal):
            prefix = f"encoder.down.{level}.downsample"
            if spatial:
                yield from _conv(f"{prefix}.conv1", wide, wide, (1, 3, 3))
            if temporal:
                yield from _conv(f"{prefix}.conv2", wide, wide, (3, 1, 1))
            yield from _conv(f"{prefix}.conv3", wide, wide)
    yield from _middle("encoder.mid", wide)
    yield from _norm("encoder.norm_out", wide)
    yield from _pair("encoder.conv_out", wide, config.z_channels)

    widths = list(config.decoder_channels)
    wide = widths.pop()
    yield from _pair("decoder.conv_in", config.z_channels, wide)
    yield from _middle("decoder.mid", wide)
    levels = []
    for level in range(last, -1, -1):
        levels.append(list(_up(config, level, wide, widths[level], last)))
        wide = widths[level]
    for entries in reversed(levels):
        yield from entries
    yield from _norm("decoder.norm_out", wide)
    yield from _pair("decoder.conv_out", wide, wavelet)
    yield from _conv("quant_conv", config.z_channels, config.latent_channels)
    yield from _conv("post_quant_conv", config.latent_channels, config.z_channels)


def _up(config: TokenizerConfig, level: int, wide: int, width: int, last: int) -> Iterator[Entry]:
    for block in range(config.res_blocks + 1):
        yield from _resnet(f"decoder.up.{level}.block.{block}", wide, width)
        wide = width
    spatial, temporal = config.up_steps(last - level)
    if level and (spatial or temporal):
        prefix = f"decoder.up.{level}.upsample"
        if temporal:
            yield from _conv(f"{prefix}.conv1", wide, wide, (3, 1, 1))
        if spatial:
            yield from _conv(f"{prefix}.conv2", wide, wide, (1, 3, 3))
        yield from _conv(f"{prefix}.conv3", wide, wide)


def _conv(
    name: str, inputs: int, outputs: int, kernel: tuple[int, int, int] = (1, 1, 1)
) -> Iterator[Entry]:
    yield f"{name}.conv3d.weight", (outputs, inputs, *kernel)
    yield f"{name}.conv3d.bias", (outputs,)


def _pair(name: str, inputs: int, outputs: int) -> Iterator[Entry]:
    yield from _conv(f"{name}.0", inputs, outputs, (1, 3, 3))
    yield from _conv(f"{name}.1", outputs, outputs, (3, 1, 1))


def _norm(name: str, width: int) -> Iterator[Entry]:
    yield f"{name}.norm.weight", (width,)
    yield f"{name}.norm.bias", (width,)


def _resnet(name: str, inputs: int, outputs: int) -> Iterator[Entry]:
    yield from _norm(f"{name}.norm1", inputs)
    yield from _pair(f"{name}.conv1", inputs, outputs)
    yield from _norm(f"{name}.norm2", outputs)
    yield from _pair(f"{name}.conv2", outputs, outputs)
    if inputs != outputs:
        yield from _conv(f"{name}.nin_shortcut", inputs, outputs)


def _middle(name: str, width: int) -> Iterator[Entry]:
    yield from _resnet(f"{name}.block_1", width, width)
    for part in range(2):
        prefix = f"{name}.attn_1.{part}"
        yield from _norm(f"{prefix}.norm", width)
        for projection in ("q", "k", "v", "proj_out"):
            yield from _conv(f"{prefix}.{projection}", width, width)
    yield from _resnet(f"{name}.block_2", width, width)
