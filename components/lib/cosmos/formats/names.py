"""Parameter names of the two networks in their official and diffusers forms.

Both mappings only rename; no weight is permuted or reshaped. They are written as ordered rules
over name parts and work in both directions, so a round trip cannot drift. The tests hold them
against the published name lists and against diffusers' own modules.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from components.lib.contract import UserError

_DIT_OUTSIDE = {
    "x_embedder.proj.1.weight": "patch_embed.proj.weight",
    "t_embedder.1.linear_1.weight": "time_embed.t_embedder.linear_1.weight",
    "t_embedder.1.linear_2.weight": "time_embed.t_embedder.linear_2.weight",
    "affline_norm.weight": "time_embed.norm.weight",
    "extra_pos_embedder.pos_emb_t": "learnable_pos_embed.pos_emb_t",
    "extra_pos_embedder.pos_emb_h": "learnable_pos_embed.pos_emb_h",
    "extra_pos_embedder.pos_emb_w": "learnable_pos_embed.pos_emb_w",
    "final_layer.linear.weight": "proj_out.weight",
    "final_layer.adaLN_modulation.1.weight": "norm_out.linear_1.weight",
    "final_layer.adaLN_modulation.2.weight": "norm_out.linear_2.weight",
}
_ATTENTION = {
    "to_q.0": "to_q",
    "to_q.1": "norm_q",
    "to_k.0": "to_k",
    "to_k.1": "norm_k",
    "to_v.0": "to_v",
    "to_out.0": "to_out.0",
}
# Within one transformer block.
_DIT_BLOCK = {
    **{f"blocks.0.block.attn.{a}": f"attn1.{b}" for a, b in _ATTENTION.items()},
    **{f"blocks.1.block.attn.{a}": f"attn2.{b}" for a, b in _ATTENTION.items()},
    "blocks.2.block.layer1": "ff.net.0.proj",
    "blocks.2.block.layer2": "ff.net.2",
    **{
        f"blocks.{part}.adaLN_modulation.{linear}": f"norm{part + 1}.linear_{linear}"
        for part in range(3)
        for linear in (1, 2)
    },
}
_DIT_BLOCK_BACK = {theirs: ours for ours, theirs in _DIT_BLOCK.items()}
_DIT_OUTSIDE_BACK = {theirs: ours for ours, theirs in _DIT_OUTSIDE.items()}


def dit_to_diffusers(name: str) -> str | None:
    """diffusers' name of an official DiT parameter; None when it has none."""
    if match := re.fullmatch(r"blocks\.block(\d+)\.(.+)\.weight", name):
        inner = _DIT_BLOCK.get(match[2])
        return inner and f"transformer_blocks.{match[1]}.{inner}.weight"
    return _DIT_OUTSIDE.get(name)


def dit_from_diffusers(name: str) -> str | None:
    """Official name of a parameter of `CosmosTransformer3DModel`; None when it has none."""
    if match := re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)\.weight", name):
        inner = _DIT_BLOCK_BACK.get(match[2])
        return inner and f"blocks.block{match[1]}.{inner}.weight"
    return _DIT_OUTSIDE_BACK.get(name)


# (official, diffusers) pairs of name patterns of the tokenizer. `#` stands for a number that both
# sides share, `^` for a level of the decoder, which diffusers counts from the other end.
_TOKENIZER_PLACES = [
    ("encoder.conv_in", "encoder.conv_in"),
    ("encoder.down.#.block.#", "encoder.down_blocks.#.resnets.#"),
    ("encoder.down.#.downsample", "encoder.down_blocks.#.downsamplers.0"),
    ("decoder.conv_in", "decoder.conv_in"),
    ("decoder.up.^.block.#", "decoder.up_blocks.^.resnets.#"),
    ("decoder.up.^.upsample", "decoder.up_blocks.^.upsamplers.0"),
    *[
        (f"{side}.mid.{ours}", f"{side}.mid_block.{theirs}")
        for side in ("encoder", "decoder")
        for ours, theirs in (
            ("block_1", "resnets.0"),
            ("block_2", "resnets.1"),
            ("attn_1.0", "attentions.0"),
            ("attn_1.1", "temp_attentions.0"),
        )
    ],
    *[(f"{side}.norm_out", f"{side}.norm_out") for side in ("encoder", "decoder")],
    *[(f"{side}.conv_out", f"{side}.conv_out") for side in ("encoder", "decoder")],
    ("quant_conv", "quant_conv"),
    ("post_quant_conv", "post_quant_conv"),
]
# What may follow a place: (official, diffusers).
_TOKENIZER_PARTS = [
    ("norm1.norm", "norm1.norm"),
    ("norm2.norm", "norm2.norm"),
    *[(f"conv{n}.0.conv3d", f"conv{n}.conv_s") for n in (1, 2)],
    *[(f"conv{n}.1.conv3d", f"conv{n}.conv_t") for n in (1, 2)],
    ("nin_shortcut.conv3d", "conv_shortcut"),
    *[(f"conv{n}.conv3d", f"conv{n}") for n in (1, 2, 3)],
    ("norm.norm", "norm.norm"),
    *[(f"{x}.conv3d", f"to_{x}") for x in ("q", "k", "v")],
    ("proj_out.conv3d", "to_out.0"),
    ("0.conv3d", "conv_s"),
    ("1.conv3d", "conv_t"),
    ("norm", "norm"),
    ("conv3d", ""),
]


def tokenizer_to_diffusers(name: str, levels: int = 3) -> str | None:
    """diffusers' name of an official tokenizer parameter; None when it has none.

    ``levels`` is the number of decoder levels (three in the published models).
    """
    return _rename(name, levels, source=0)


def tokenizer_from_diffusers(name: str, levels: int = 3) -> str | None:
    """Official name of a parameter of `AutoencoderKLCosmos`; None when it has none."""
    return _rename(name, levels, source=1)


def _rename(name: str, levels: int, source: int) -> str | None:
    stem, _, leaf = name.rpartition(".")
    if leaf not in ("weight", "bias"):
        return None
    for place in _TOKENIZER_PLACES:
        pattern = re.escape(place[source]).replace(r"\#", r"(\d+)").replace(r"\^", r"(\d+)")
        match = re.match(rf"{pattern}(?:\.|$)", stem)
        if match is None:
            continue
        rest = stem[match.end() :]
        for part in _TOKENIZER_PARTS:
            if part[source] == rest:
                target = _fill(place[1 - source], list(match.groups()), levels)
                return ".".join(piece for piece in (target, part[1 - source], leaf) if piece)
    return None


def _fill(pattern: str, numbers: list[str], levels: int) -> str:
    pieces = []
    for character in pattern:
        if character == "#":
            pieces.append(numbers.pop(0))
        elif character == "^":
            pieces.append(str(levels - 1 - int(numbers.pop(0))))
        else:
            pieces.append(character)
    return "".join(pieces)


def is_ignorable(name: str) -> bool:
    """Entries of official files that are no parameters of the networks used here.

    `logvar.*` is the uncertainty head of pretraining, `pos_embedder.seq` a counter,
    `_extra_state` Transformer Engine's, and the patcher buffers are the Haar filter itself.
    """
    return bool(
        re.search(r"(^|\.)_extra_state(/|$)", name)
        or re.match(r"logvar\.", name)
        or name == "pos_embedder.seq"
        or re.match(r"(encoder\.patcher3d|decoder\.unpatcher3d)\.", name)
        or re.match(r"accum_\w+(_count|_counter|\b)", name)
    )


def dit_layers(names: Iterable[str]) -> int:
    """Number of transformer blocks among official names. Raises UserError when there is a gap."""
    numbers = {int(m[1]) for name in names if (m := re.match(r"blocks\.block(\d+)\.", name))}
    if numbers and max(numbers) + 1 != len(numbers):
        gap = next(number for number in range(max(numbers)) if number not in numbers)
        raise UserError(f"The checkpoint has no keys blocks.block{gap}.*, but later blocks.")
    return len(numbers)
