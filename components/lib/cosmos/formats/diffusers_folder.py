"""diffusers' folders of both networks: `CosmosTransformer3DModel` and `AutoencoderKLCosmos`.

Only names differ from the official form. Settings travel in diffusers' `config.json`; one that
describes a network of a later Cosmos generation is refused by the setting that says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from components.lib.contract import UserError
from components.lib.cosmos.dit.config import DiTConfig
from components.lib.cosmos.formats import names
from components.lib.cosmos.formats.source_config import read_json
from components.lib.cosmos.tokenizer.config import TokenizerConfig

if TYPE_CHECKING:
    import torch

    from components.lib.cosmos.model_folder import Weights

STEM = "diffusion_pytorch_model"
DIT_CLASS = "CosmosTransformer3DModel"
TOKENIZER_CLASS = "AutoencoderKLCosmos"
COUNTER = "pos_embedder.seq"


def component_folder(folder: Path) -> tuple[Path, str] | None:
    """The folder with weights of one of the two classes, and which; also inside a pipeline."""
    for place in (folder, folder / "transformer", folder / "vae"):
        name = read_json(place / "config.json").get("_class_name")
        if name in (DIT_CLASS, TOKENIZER_CLASS):
            return place, str(name)
    return None


def dit_to_diffusers_config(config: DiTConfig) -> dict[str, Any]:
    """diffusers' settings of a DiT. Raises UserError for a width that they cannot express."""
    if config.ffn % config.hidden:
        ratio = config.ffn / config.hidden
        if int(config.hidden * ratio) != config.ffn:
            raise UserError(f"diffusers has no setting for {config.ffn} wide hidden layers.")
    return {
        "in_channels": config.in_channels - 1,
        "out_channels": config.latent_channels,
        "num_attention_heads": config.heads,
        "attention_head_dim": config.head_dim,
        "num_layers": config.layers,
        "mlp_ratio": config.ffn / config.hidden,
        "text_embed_dim": config.text_dim,
        "adaln_lora_dim": config.adaln_rank,
        "max_size": [config.max_frames, config.max_height, config.max_width],
        "patch_size": [config.patch_temporal, config.patch_spatial, config.patch_spatial],
        "rope_scale": list(config.rope_ratio),
        "concat_padding_mask": True,
        "extra_pos_embed_type": "learnable",
    }


def dit_from_diffusers_config(folder: Path) -> DiTConfig:
    """Our settings from diffusers' `config.json`. Raises UserError naming what does not fit."""
    values = {**_DIT_DEFAULTS, **read_json(folder / "config.json")}
    for key, wanted in _DIT_FIXED.items():
        if values[key] != wanted:
            raise UserError(
                f"{folder / 'config.json'}: '{key}' is {values[key]!r}; Cosmos-1.0 Text2World and "
                f"Video2World have {wanted!r}. This is another network."
            )
    try:
        heads, width = int(values["num_attention_heads"]), int(values["attention_head_dim"])
        channels = int(values["out_channels"])
        frames, height, columns = values["max_size"]
        return DiTConfig(
            layers=values["num_layers"],
            hidden=heads * width,
            heads=heads,
            ffn=int(heads * width * float(values["mlp_ratio"])),
            text_dim=values["text_embed_dim"],
            adaln_rank=values["adaln_lora_dim"],
            latent_channels=channels,
            condition_mask=int(values["in_channels"]) > channels,
            patch_spatial=values["patch_size"][1],
            patch_temporal=values["patch_size"][0],
            max_frames=frames,
            max_height=height,
            max_width=columns,
            rope_ratio=tuple(values["rope_scale"]),
        )
    except (ValidationError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"{folder / 'config.json'} does not describe a Cosmos-1.0 network: {error}"
        ) from error


_DIT_DEFAULTS: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "num_attention_heads": 32,
    "attention_head_dim": 128,
    "num_layers": 28,
    "mlp_ratio": 4.0,
    "text_embed_dim": 1024,
    "adaln_lora_dim": 256,
    "max_size": [128, 240, 240],
    "patch_size": [1, 2, 2],
    "rope_scale": [2.0, 1.0, 1.0],
    "concat_padding_mask": True,
    "extra_pos_embed_type": "learnable",
    "use_crossattn_projection": False,
    "controlnet_block_every_n": None,
    "img_context_dim_in": None,
}
_DIT_FIXED = {
    "concat_padding_mask": True,
    "extra_pos_embed_type": "learnable",
    "use_crossattn_projection": False,
    "controlnet_block_every_n": None,
    "img_context_dim_in": None,
}


def tokenizer_to_diffusers_config(
    config: TokenizerConfig, mean: torch.Tensor, std: torch.Tensor
) -> dict[str, Any]:
    """diffusers' settings of a continuous tokenizer, with its latent statistics."""
    if config.fsq_levels is not None:
        raise UserError(
            "diffusers has no discrete Cosmos tokenizer. Export a DV tokenizer with --to jit."
        )
    if config.z_channels != config.latent_channels:
        raise UserError("diffusers has no setting for z_channels unlike latent_channels.")
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": config.latent_channels,
        "encoder_block_out_channels": list(config.encoder_channels),
        "decode_block_out_channels": list(config.decoder_channels),
        "attention_resolutions": [32],
        "resolution": 1024,
        "num_layers": config.res_blocks,
        "patch_size": config.patch,
        "patch_type": "haar",
        "scaling_factor": 1.0,
        "spatial_compression_ratio": config.spatial,
        "temporal_compression_ratio": config.temporal,
        "latents_mean": mean.flatten().tolist(),
        "latents_std": std.flatten().tolist(),
    }


def tokenizer_from_diffusers_config(
    folder: Path,
) -> tuple[TokenizerConfig, torch.Tensor, torch.Tensor]:
    """Our settings, and the latent mean and std [C, frames of a window], from `config.json`.

    A table that diffusers' `config.json` leaves out is the published one, as in diffusers.
    """
    import torch

    from components.lib.cosmos.tokenizer.network import default_statistics

    path = folder / "config.json"
    values = {**_TOKENIZER_DEFAULTS, **read_json(path)}
    if values["patch_type"] != "haar" or values["in_channels"] != 3:
        raise UserError(f"{path} does not describe a Cosmos-1.0 tokenizer (Haar patches of RGB).")
    try:
        widths = [int(width) for width in values["encoder_block_out_channels"]]
        channels, multipliers = widths[0], tuple(width // widths[0] for width in widths[1:])
        latent = int(values["latent_channels"])
        mean, std = values["latents_mean"], values["latents_std"]
        columns = len(mean) // latent if mean is not None else 16
        config = TokenizerConfig(
            channels=channels,
            multipliers=multipliers,
            res_blocks=values["num_layers"],
            z_channels=latent,
            latent_channels=latent,
            spatial=values["spatial_compression_ratio"],
            temporal=values["temporal_compression_ratio"],
            patch=values["patch_size"],
            window=(columns - 1) * int(values["temporal_compression_ratio"]) + 1,
            statistics="cv8x8x8" if mean == "published" else "none",
        )
        if list(config.decoder_channels) != [int(w) for w in values["decode_block_out_channels"]]:
            raise UserError(f"{path}: the decoder's widths are not those of a Cosmos tokenizer.")
        if mean is None or mean == "published":
            return config, *default_statistics(config)
        shape = (latent, columns)
        return config, torch.tensor(mean).reshape(shape), torch.tensor(std).reshape(shape)
    except (ValidationError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise UserError(f"{path} does not describe a Cosmos-1.0 tokenizer: {error}") from error


_TOKENIZER_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "latent_channels": 16,
    "encoder_block_out_channels": [128, 256, 512, 512],
    "decode_block_out_channels": [256, 512, 512, 512],
    "num_layers": 2,
    "patch_size": 4,
    "patch_type": "haar",
    "spatial_compression_ratio": 8,
    "temporal_compression_ratio": 8,
    "latents_mean": "published",
    "latents_std": "published",
}


def from_diffusers(name: str, class_name: str, levels: int) -> str:
    """Official name; a name that has none is kept, for the strict check to report."""
    if class_name == DIT_CLASS:
        return names.dit_from_diffusers(name) or name
    return names.tokenizer_from_diffusers(name, levels) or name


def write_diffusers(
    folder: Path, class_name: str, config: dict[str, Any], weights: Weights, levels: int = 3
) -> None:
    """Write a folder that ``from_pretrained`` of the class loads. `config.json` goes last."""
    from components.lib.cosmos.model_folder import write_safetensors

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    write_safetensors(folder, STEM, _named(weights, class_name, levels))
    values = {"_class_name": class_name, "_diffusers_version": _diffusers_version(), **config}
    (folder / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def _named(weights: Weights, class_name: str, levels: int) -> Iterator[tuple[str, torch.Tensor]]:
    from collections.abc import Mapping

    for key, tensor in weights.items() if isinstance(weights, Mapping) else weights:
        if key == COUNTER:
            continue
        if class_name == DIT_CLASS:
            name = names.dit_to_diffusers(key)
        else:
            name = names.tokenizer_to_diffusers(key, levels)
        assert name is not None, f"the strict check let {key} through"
        yield name, tensor


def _diffusers_version() -> str:
    from importlib.metadata import version

    return version("diffusers")
