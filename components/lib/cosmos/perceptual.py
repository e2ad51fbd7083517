"""The tokenizer's loss: L1, VGG16 features, Gram matrices, optical flow; weights by global step.

The VGG16 here is the bare convolution stack up to relu5_3 under torchvision's names
(`features.N.weight`). As in the reference the features are compared raw: no channel normalisation
and no learned heads. The reference schedules by a batch index that restarts on resume; here the
global step decides.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from components.lib.contract import UserError
from components.lib.cosmos.formats.vgg import VGG_CHANNELS, VGG_PER_STAGE, VGGConfig

FlowNetwork = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

Widths = tuple[int, int, int, int, int]
# The activations that are compared (relu1_2, 2_2, 3_3, 4_3, 5_3), by convolution number, and
# their weights.
TAPS = (2, 4, 7, 10, 13)
TAP_WEIGHTS = (1 / 2.6, 1 / 4.8, 1 / 3.7, 1 / 5.6, 10 / 1.5)
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


def scheduled(weights: tuple[float, float], boundary: int, step: int) -> float:
    """The weight of a term at a global step: the first before ``boundary``, then the second."""
    return weights[0] if step < boundary else weights[1]


class VGG16Features(nn.Module):
    """Frozen VGG16 up to relu5_3. ``channels`` are the widths of its five stages."""

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self, channels: Widths = VGG_CHANNELS) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width, count in zip(channels, VGG_PER_STAGE, strict=True):
            if layers:
                layers.append(nn.MaxPool2d(2))
            for _ in range(count):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
        self.features = nn.Sequential(*layers)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def forward(self, frames: torch.Tensor) -> list[torch.Tensor]:
        """The five compared activations of frames [N, 3, H, W] in [-1, 1]."""
        x = (frames - self.shift) / self.scale
        activations, number = [], 0
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                number += 1
                if number in TAPS:
                    activations.append(x)
        return activations


def load_vgg16(folder: Path) -> VGG16Features:
    """The features from a folder of safetensors. Classifier weights in it are ignored.

    Raises UserError when a convolution is missing or has another shape.
    """
    from components.lib.cosmos.model_folder import (
        check_keys,
        read_model_config,
        read_specs,
        read_weights,
    )

    stored_config = read_model_config(folder)
    if stored_config.family != "vgg16":
        raise UserError(f"model.vgg_path holds a {stored_config.family}, not a VGG16.")
    model = VGG16Features(VGGConfig.model_validate(stored_config.config).channels)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    stored = {
        name: spec.shape for name, spec in read_specs(folder).items() if name.startswith("features")
    }
    check_keys(wanted, stored, str(folder))
    weights = {name: value.float() for name, value in read_weights(folder) if name in wanted}
    model.load_state_dict(weights)
    return model.eval()


def feature_terms(
    vgg: VGG16Features, original: torch.Tensor, other: torch.Tensor, *, gram: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(perceptual, gram) terms of videos [B, 3, T, H, W]; gram is zero unless asked for."""
    frames = original.shape[2]
    perceptual = original.new_zeros((), dtype=torch.float32)
    grams = perceptual.clone()
    with torch.no_grad():
        targets = vgg(_fold(original))
    for weight, target, value in zip(TAP_WEIGHTS, targets, vgg(_fold(other)), strict=True):
        perceptual = perceptual + weight * (value - target).abs().mean()
        if gram:
            difference = _gram(value, frames) - _gram(target, frames)
            grams = grams + weight * difference.pow(2).mean()
    return perceptual, grams


def flow_term(network: FlowNetwork, original: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """L1 between the optical flows of two videos [B, 3, T, H, W], forwards and backwards.

    As in the reference, flow is computed at half size and brought back: doubled and interpolated.
    Zero for a single frame.
    """
    if original.shape[2] < 2:
        return original.new_zeros((), dtype=torch.float32)
    total = original.new_zeros((), dtype=torch.float32)
    for first, second in ((slice(None, -1), slice(1, None)), (slice(1, None), slice(None, -1))):
        with torch.no_grad():
            target = _flow(network, original[:, :, first], original[:, :, second])
        flow = _flow(network, other[:, :, first], other[:, :, second])
        total = total + (flow - target).abs().mean()
    return total / 2


def _flow(network: FlowNetwork, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    size = first.shape[3:]
    halves = [
        F.interpolate(_fold(video), scale_factor=0.5, mode="bilinear", align_corners=False)
        for video in (first, second)
    ]
    flow = 2 * network(*halves)
    return F.interpolate(flow, size=size, mode="bilinear", align_corners=False)


def _fold(video: torch.Tensor) -> torch.Tensor:
    """[B, 3, T, H, W] -> [B·T, 3, H, W]."""
    return video.float().transpose(1, 2).flatten(0, 1)


def _gram(features: torch.Tensor, frames: int) -> torch.Tensor:
    """[B, C, C]: products of channels summed over time and space, divided by their number."""
    rows = features.unflatten(0, (-1, frames)).transpose(1, 2).flatten(2)
    return rows @ rows.transpose(1, 2) / rows.shape[-1]


_WHERE = {
    "model.vgg_path": " VGG16 is fetched by the stage checkpoint_fetch with role=vgg16 and "
    "source=hf://timm/vgg16.tv_in1k."
}


def check_weights(folder: str, what: str, setting: str) -> None:
    """Raises UserError when a term is on and its network has no weights."""
    if not folder:
        raise UserError(
            f"The {what} term is on but {setting} is empty. Give its weights, or set the weight of "
            f"the term to zero.{_WHERE.get(setting, '')}"
        )


def l1(original: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference, in fp32."""
    return F.l1_loss(other.float(), original.float())
