"""A tiny set of checkpoints in the official layouts, randomly initialised from a seed.

It lets every stage run on a laptop through the very code that handles the published files: the
same names, file names and dtypes (bf16), only narrower networks. The tokenizers are initialised
so that signals keep their size through the network, and their last encoder layer is scaled on
smooth random video until latents are about standard normal, so that training starts at once.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from components.lib.cosmos.formats.official import write_mean_std, write_model_pt
from components.lib.cosmos.formats.source_config import write_config
from components.lib.cosmos.formats.vgg import vgg_shapes

if TYPE_CHECKING:
    import torch

    from components.lib.cosmos.tokenizer.config import TokenizerConfig

DIT_FOLDER = "Cosmos-1.0-Diffusion-7B-Text2World"
CV_FOLDER = "Cosmos-1.0-Tokenizer-CV8x8x8"
DV_FOLDER = "Cosmos-1.0-Tokenizer-DV8x16x16"
T5_FOLDER = "t5-11b"
VGG_FOLDER = "vgg16"
COMPLETE_NAME = "complete.json"
TINY_VGG_CHANNELS = (8, 12, 16, 24, 24)


def write_tiny(folder: Path, seed: int = 0) -> Path:
    """Write the whole set under ``folder`` and return it; `complete.json` is written last.

    Equal seeds give equal weights. An earlier set in the folder is replaced.
    """
    from components.lib.cosmos.formats.tiny_text import write_tiny_t5

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / COMPLETE_NAME).unlink(missing_ok=True)
    for name in (DIT_FOLDER, CV_FOLDER, DV_FOLDER, T5_FOLDER, VGG_FOLDER):
        shutil.rmtree(folder / name, ignore_errors=True)
    write_dit(folder / DIT_FOLDER, seed)
    write_tokenizer(folder / CV_FOLDER, "tiny-cv", seed)
    write_tokenizer(folder / DV_FOLDER, "tiny-dv", seed)
    write_tiny_t5(folder / T5_FOLDER, seed)
    write_vgg(folder / VGG_FOLDER, seed)
    temporary = folder / f"{COMPLETE_NAME}.partial"
    temporary.write_text(json.dumps({"preset": "tiny", "seed": seed}) + "\n")
    temporary.replace(folder / COMPLETE_NAME)
    return folder


def write_dit(folder: Path, seed: int) -> None:
    """`model.pt` and `config.json` of the tiny diffusion transformer."""
    import torch

    from components.lib.cosmos.dit.network import DIT_PRESETS, DiT

    folder.mkdir(parents=True)
    config = DIT_PRESETS["tiny"]
    weights = {
        name: tensor.bfloat16() for name, tensor in DiT(config, seed=seed).state_dict().items()
    }
    # The uncertainty head of pretraining, which the published files carry.
    width = 128
    weights["logvar.0.freqs"] = _normal("logvar.0.freqs", (width,), 1.0, seed).bfloat16()
    weights["logvar.0.phases"] = torch.zeros(width, dtype=torch.bfloat16)
    weights["logvar.1.weight"] = torch.zeros(1, width, dtype=torch.bfloat16)
    write_model_pt(folder / "model.pt", weights)
    write_config(folder, "dit", "tiny", config.model_dump(mode="json"))


def write_tokenizer(folder: Path, preset: str, seed: int) -> None:
    """The three archives, `config.json` and, for continuous latents, their statistics."""
    from components.lib.cosmos.formats.jit.exporting import write_jit
    from components.lib.cosmos.tokenizer.config import TOKENIZER_PRESETS

    folder.mkdir(parents=True)
    config = TOKENIZER_PRESETS[preset]
    weights, mean, std = initial_tokenizer(config, seed)
    write_jit(folder, config, weights)
    if config.fsq_levels is None:
        write_mean_std(folder, mean, std)
    write_config(folder, "tokenizer", preset, config.model_dump(mode="json"))


def write_vgg(folder: Path, seed: int) -> None:
    """`model.safetensors` with torchvision's VGG16 names and narrow layers."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    save_file(initial_vgg(TINY_VGG_CHANNELS, seed), str(folder / "model.safetensors"))
    write_config(folder, "vgg16", "vgg16-tiny", {"channels": list(TINY_VGG_CHANNELS)})


def initial_vgg(channels: tuple[int, ...], seed: int) -> dict[str, torch.Tensor]:
    """Random features that keep the size of their input (He's normal), fp32."""
    weights = {}
    for name, shape in vgg_shapes(channels).items():
        fan_in = shape[1] * 9 if len(shape) == 4 else 1
        deviation = (2 / fan_in) ** 0.5 if len(shape) == 4 else 0.0
        weights[name] = _normal(name, shape, deviation, seed)
    return weights


def initial_tokenizer(
    config: TokenizerConfig, seed: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """bf16 weights under official names, and mean and std [C, latent frames of a window]."""
    import torch

    from components.lib.cosmos.tokenizer.network import CosmosTokenizer

    tokenizer = CosmosTokenizer(config)
    weights = {
        name: _initial_weight(name, tuple(tensor.shape), seed)
        for name, tensor in tokenizer.state_dict().items()
    }
    video = smooth_video(config.window, 64, seed)
    with torch.no_grad():
        continuous = CosmosTokenizer(config.model_copy(update={"fsq_levels": None}))
        continuous.load_state_dict(weights)
        latent = continuous.encode(video)
        centre = latent.mean(dim=(0, 2, 3, 4))
        scale = (0.8 if config.fsq_levels is None else 1.0) / latent.std(dim=(0, 2, 3, 4))
        weights["quant_conv.conv3d.weight"] *= scale.view(-1, 1, 1, 1, 1)
        weights["quant_conv.conv3d.bias"] = (weights["quant_conv.conv3d.bias"] - centre) * scale
        rounded = {name: tensor.bfloat16() for name, tensor in weights.items()}
        continuous.load_state_dict({name: tensor.float() for name, tensor in rounded.items()})
        latent = continuous.encode(video)
    return rounded, latent.mean(dim=(0, 3, 4)), latent.std(dim=(0, 3, 4))


def _initial_weight(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    import torch

    if len(shape) == 1:
        return torch.full(shape, 1.0 if name.endswith("norm.weight") else 0.0)
    fan_in = 1
    for size in shape[1:]:
        fan_in *= size
    gain = 1.0
    if ".conv2.1." in name or ".proj_out." in name:
        gain = 0.2  # what is added to a residual stream starts small: depth must not blow it up
    elif name.startswith("decoder.conv_out.1."):
        gain = 0.1  # a pixel is a sum over 64 wavelet bands; this makes videos of a video's size
    return _normal(name, shape, gain / fan_in**0.5, seed)


def _normal(name: str, shape: tuple[int, ...], deviation: float, seed: int) -> torch.Tensor:
    """Normal numbers that depend on the name and the seed only."""
    import torch

    digest = hashlib.sha256(f"tiny/{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randn(shape, generator=generator) * deviation


def smooth_video(frames: int, size: int, seed: int, clips: int = 2) -> torch.Tensor:
    """Random video [clips, 3, frames, size, size] in [-1, 1] with large and small slow shapes."""
    import torch
    import torch.nn.functional as F

    video = torch.zeros(clips, 3, frames, size, size)
    for grid, weight in ((3, 0.5), (8, 0.25), (24, 0.1)):
        coarse = _normal(f"video/{grid}", (clips, 3, max(2, grid // 2), grid, grid), weight, seed)
        video += F.interpolate(coarse, size=(frames, size, size), mode="trilinear")
    return video.clamp(-1, 1)
