"""What a model is, without its weights: counts, shapes, operations, memory.

Everything follows from the settings: the network is built without weights (`shapes`) and counted
(`flops`). That takes seconds, most of them the import of torch, which is not imported before.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from components.lib.contract import Frozen, UserError
from components.lib.cosmos.dit.config import DiTConfig
from components.lib.cosmos.families import family_named, family_of, trained_families
from components.lib.cosmos.flops import (
    EstimatedLayout,
    dit_attention_flops,
    dit_forward_flops,
    dit_memory,
    video_flops,
)
from components.lib.cosmos.shapes import (
    parameter_count,
    state_shapes,
)
from components.lib.cosmos.tokenizer.config import TOKENIZER_PRESETS, TokenizerConfig

#: What published names hold beyond the size that names a preset.
_AROUND = re.compile(r"^nvidia/|^cosmos-(1\.0-)?|^(diffusion|dit|tokenizer)-|-text2world$|-t2w$")


class Clip(Frozen):
    """The video for which shapes and operations are given."""

    frames: int = 121
    height: int = 704
    width: int = 1280


def find_model(model: str) -> tuple[str, Frozen]:
    """Name and settings of a preset, a published model or a canonical model folder."""
    presets = {
        name: settings
        for family in trained_families()
        for name, settings in family.preset_settings().items()
    }
    short = preset_name(model)
    for name, settings in presets.items():
        if name.lower() == short:
            return name, settings
    if Path(model).is_dir():
        return _from_folder(Path(model))
    known = ", ".join(presets)
    raise UserError(
        f"There is no model '{model}'. Give a model folder, a published name such as "
        f"Cosmos-1.0-Diffusion-7B-Text2World, or one of: {known}."
    )


def preset_name(model: str) -> str:
    """A published name cut down to its preset's, in lower case: ``7b-v2w``, ``cv8x8x8``."""
    short, before = model.strip().lower(), ""
    while short != before:
        before, short = short, _AROUND.sub("", short)
    return short.replace("-video2world", "-v2w")


def _from_folder(folder: Path) -> tuple[str, Frozen]:
    from components.lib.cosmos.model_folder import read_model_config

    model = read_model_config(folder)
    family = family_named(model.family)
    if family.training:
        return model.name, family.settings_class().model_validate(model.config)
    raise UserError(
        f"{folder} holds '{model.name}' of family '{model.family}', not described here."
    )


def describe(
    name: str,
    settings: Frozen,
    clip: Clip | None = None,
    layout: EstimatedLayout | None = None,
) -> dict[str, Any]:
    """JSON values: the field ``parameters`` and all that follows from the settings.

    Operations count a multiply-add as two; memory is in bytes per GPU. UserError when the model
    cannot take the clip.
    """
    clip, layout = clip or Clip(), layout or EstimatedLayout()
    parameters = parameter_count(settings)
    general = {
        "name": name,
        "family": family_of(settings).name,
        "parameters": parameters,
        "tensors": len(state_shapes(settings)),
        "bf16_bytes": 2 * parameters,
        "clip": clip.model_dump(),
        "config": settings.model_dump(mode="json"),
    }
    if isinstance(settings, DiTConfig):
        return general | _describe_dit(settings, clip, layout)
    if isinstance(settings, TokenizerConfig):
        return general | _describe_tokenizer(settings, clip)
    return general


def _describe_dit(config: DiTConfig, clip: Clip, layout: EstimatedLayout) -> dict[str, Any]:
    tokenizer = TOKENIZER_PRESETS["CV8x8x8"]
    tokenizer.check_clip(**clip.model_dump())
    _, frames, height, width = tokenizer.latent_shape(**clip.model_dump())
    try:
        grid = config.grid(frames, height, width)
    except ValueError as error:
        raise UserError(f"This model cannot take the clip: {error}.") from error
    if config.heads % layout.tp or config.ffn % layout.tp:
        raise UserError(f"{config.heads} attention heads do not divide by tp {layout.tp}.")
    tokens = math.prod(grid)
    forward = dit_forward_flops(config, tokens)
    memory = dit_memory(config, tokens, layout)
    return {
        "layers": config.layers,
        "hidden": config.hidden,
        "heads": config.heads,
        "latent_shape": [config.latent_channels, frames, height, width],
        "token_grid": list(grid),
        "tokens": tokens,
        "token_features": config.in_channels * config.patch_volume,
        "forward_flops": forward,
        "training_flops": 3 * forward,
        "attention_share": round(dit_attention_flops(config, tokens) / forward, 4),
        "layout": layout.model_dump(),
        "memory_per_gpu": {
            "state_bytes": memory.state,
            "activation_bytes": memory.activations,
            "total_bytes": memory.total,
        },
    }


def _describe_tokenizer(config: TokenizerConfig, clip: Clip) -> dict[str, Any]:
    config.check_clip(**clip.model_dump())
    latent = config.latent_shape(**clip.model_dump())
    encode, decode = video_flops(config, clip.frames, clip.height, clip.width)
    return {
        "layers": len(config.multipliers),
        "latent_shape": list(latent),
        "codes": math.prod(config.fsq_levels) if config.fsq_levels else None,
        "window_frames": config.window,
        "encode_flops": encode,
        "decode_flops": decode,
    }


def render(facts: dict[str, Any]) -> str:
    """The same facts for people."""
    rows = [
        ("model", f"{facts['name']} ({facts['family']})"),
        ("parameters", f"{facts['parameters']:,} in {facts['tensors']} tensors"),
        ("weights", f"{facts['bf16_bytes'] / 1e9:.2f} GB in bf16"),
    ]
    clip = facts["clip"]
    if "latent_shape" in facts:
        latent = " x ".join(map(str, facts["latent_shape"]))
        size = f"{clip['frames']} frames of {clip['width']} x {clip['height']}"
        rows.append(("clip", f"{size} -> latent {latent}"))
    if "tokens" in facts:
        memory, layout = facts["memory_per_gpu"], facts["layout"]
        grid = " x ".join(map(str, facts["token_grid"]))
        parallel = " with sequence parallel" if layout["sequence_parallel"] else ""
        rows += [
            (
                "geometry",
                f"{facts['layers']} layers, {facts['hidden']} wide, {facts['heads']} heads",
            ),
            ("tokens", f"{facts['tokens']:,} = {grid}, {facts['token_features']} features each"),
            (
                "forward",
                f"{_big(facts['forward_flops'])}FLOP, {facts['attention_share']:.0%} attention",
            ),
            ("training", f"{_big(facts['training_flops'])}FLOP a sample"),
            (
                "layout",
                f"{layout['gpus']} GPUs, tensor parallel {layout['tp']}{parallel}, "
                f"{layout['checkpointing']} checkpointing",
            ),
            (
                "memory",
                f"about {memory['total_bytes'] / 2**30:.1f} GiB a GPU: "
                f"{memory['state_bytes'] / 2**30:.1f} state, "
                f"{memory['activation_bytes'] / 2**30:.1f} activations",
            ),
        ]
    if "codes" in facts:
        codes = facts["codes"]
        rows += [
            ("codes", f"{codes:,}" if codes else "continuous latents"),
            ("window", f"{facts['window_frames']} frames"),
            ("encode", f"{_big(facts['encode_flops'])}FLOP"),
            ("decode", f"{_big(facts['decode_flops'])}FLOP"),
        ]
    return "\n".join(f"{label:<12}{value}" for label, value in rows)


def _big(value: float) -> str:
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if value >= size:
            return f"{value / size:.3f} {unit}"
    return f"{value:.0f} "
