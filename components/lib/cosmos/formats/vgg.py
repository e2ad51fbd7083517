"""VGG16 feature weights of the perceptual loss, under torchvision's names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from components.lib.contract import Frozen, UserError

if TYPE_CHECKING:
    import torch

VGG_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
VGG_PER_STAGE = (2, 2, 3, 3, 3)
VGG_CHANNELS = (64, 128, 256, 512, 512)


class VGGConfig(Frozen):
    """Widths of the five stages."""

    channels: tuple[int, int, int, int, int] = VGG_CHANNELS


def vgg_shapes(channels: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of VGG16's thirteen convolutions for these widths of its five stages."""
    widths = [
        width for width, count in zip(channels, VGG_PER_STAGE, strict=True) for _ in range(count)
    ]
    shapes: dict[str, tuple[int, ...]] = {}
    for number, before, width in zip(VGG_CONVOLUTIONS, [3, *widths], widths, strict=False):
        shapes[f"features.{number}.weight"] = (width, before, 3, 3)
        shapes[f"features.{number}.bias"] = (width,)
    return shapes


def shapes_of(config: VGGConfig) -> dict[str, tuple[int, ...]]:
    """Every name and shape of a network with these settings."""
    return vgg_shapes(config.channels)


def read_vgg(folder: Path) -> dict[str, torch.Tensor]:
    """The `features.*` weights of a safetensors file or a torch file; the classifier is left out.

    Raises UserError when the folder has neither.
    """
    from safetensors.torch import load_file

    from components.lib.cosmos.formats.official import load_pt

    for path in sorted(folder.glob("*.safetensors")):
        return _features(load_file(str(path)))
    for pattern in ("*.pth", "*.bin", "*.pt"):
        for path in sorted(folder.glob(pattern)):
            value = load_pt(path)
            if isinstance(value, Mapping):
                return _features(value)
    raise UserError(
        f"{folder} holds no VGG16 weights: neither a .safetensors nor a .pth file. A source is "
        "hf://timm/vgg16.tv_in1k."
    )


def vgg_config(weights: Mapping[str, torch.Tensor]) -> VGGConfig:
    """Widths read off the first convolution of each stage; the published ones where it lacks."""
    firsts = (0, 5, 10, 17, 24)
    widths = [
        int(weights[f"features.{number}.weight"].shape[0])
        if f"features.{number}.weight" in weights
        else default
        for number, default in zip(firsts, VGG_CHANNELS, strict=True)
    ]
    return VGGConfig(channels=(widths[0], widths[1], widths[2], widths[3], widths[4]))


def _features(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in weights.items() if key.startswith("features.")}
