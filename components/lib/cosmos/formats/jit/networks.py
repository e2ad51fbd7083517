"""The three TorchScript archives of a tokenizer: what they take, what they return.

`encoder.jit` returns a tuple whose first element is the latent (continuous) or whose first two
are indices and codes (discrete); the last element is a constant that the reference's tools cut
off. `decoder.jit` takes the latent, or the indices, and returns the video. `autoencoder.jit` does
both and holds every weight.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.lib.cosmos.formats.jit.modules import Conv, Decoder, Encoder
from components.lib.cosmos.tokenizer.config import TokenizerConfig


class Quantiser(nn.Module):
    """Finite scalar quantisation, in fp32 whatever the dtype of its input."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = list(levels)
        basis = [1]
        for level in levels[:-1]:
            basis.append(basis[-1] * level)
        self.basis = basis
        self.halves = [level // 2 for level in levels]
        self.offsets = [0.5 if level % 2 == 0 else 0.0 for level in levels]

    def row(self, values: list[float], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=like.device).view(1, -1, 1, 1, 1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """[B, D, T, H, W] to indices [B, T, H, W] int32 and codes of the input's dtype."""
        half = self.row([(level - 1) * 1.001 / 2 for level in self.levels], z)
        offset = self.row(self.offsets, z)
        halves = self.row([float(value) for value in self.halves], z)
        basis = self.row([float(value) for value in self.basis], z)
        shift = torch.atanh(offset / half)
        steps = torch.round(torch.tanh(z.float() + shift) * half - offset)
        indices = ((steps + halves) * basis).sum(dim=1).round().to(torch.int32)
        return indices, (steps / halves).to(z.dtype)

    def codes(self, indices: Tensor) -> Tensor:
        """Indices [B, T, H, W] to codes [B, D, T, H, W] fp32."""
        rest = indices.to(torch.int64)
        parts: list[Tensor] = []
        for level, half in zip(self.levels, self.halves):  # noqa: B905 - TorchScript has no strict
            step = rest % level
            parts.append((step.float() - float(half)) / float(half))
            rest = torch.div(rest, level, rounding_mode="floor")
        return torch.stack(parts, dim=1)


class ContinuousEncoder(nn.Module):
    """encoder.jit of a CV tokenizer."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.quant_conv = Conv(config.z_channels, config.latent_channels)

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        return self.quant_conv(self.encoder(video)), torch.zeros(1, device=video.device)


class ContinuousDecoder(nn.Module):
    """decoder.jit of a CV tokenizer."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.post_quant_conv = Conv(config.latent_channels, config.z_channels)
        self.decoder = Decoder(config)

    def forward(self, latent: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latent))


class ContinuousAutoencoder(nn.Module):
    """autoencoder.jit of a CV tokenizer."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = Conv(config.z_channels, config.latent_channels)
        self.post_quant_conv = Conv(config.latent_channels, config.z_channels)

    def forward(self, video: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(self.quant_conv(self.encoder(video))))


class DiscreteEncoder(nn.Module):
    """encoder.jit of a DV tokenizer."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.quant_conv = Conv(config.z_channels, config.latent_channels)
        self.quantizer = Quantiser(config.fsq_levels or ())

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        indices, codes = self.quantizer(self.quant_conv(self.encoder(video)))
        return indices, codes, torch.zeros(1, device=video.device)


class DiscreteDecoder(nn.Module):
    """decoder.jit of a DV tokenizer."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.quantizer = Quantiser(config.fsq_levels or ())
        self.post_quant_conv = Conv(config.latent_channels, config.z_channels)
        self.decoder = Decoder(config)

    def forward(self, indices: Tensor) -> Tensor:
        codes = self.quantizer.codes(indices).to(self.post_quant_conv.conv3d.weight.dtype)
        return self.decoder(self.post_quant_conv(codes))


class DiscreteAutoencoder(nn.Module):
    """autoencoder.jit of a DV tokenizer."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = Conv(config.z_channels, config.latent_channels)
        self.quantizer = Quantiser(config.fsq_levels or ())
        self.post_quant_conv = Conv(config.latent_channels, config.z_channels)

    def forward(self, video: Tensor) -> Tensor:
        _, codes = self.quantizer(self.quant_conv(self.encoder(video)))
        return self.decoder(self.post_quant_conv(codes))


def networks(config: TokenizerConfig) -> dict[str, nn.Module]:
    """File name -> module with freshly initialised weights (the three do not share them)."""
    if config.fsq_levels is None:
        return {
            "encoder.jit": ContinuousEncoder(config),
            "decoder.jit": ContinuousDecoder(config),
            "autoencoder.jit": ContinuousAutoencoder(config),
        }
    return {
        "encoder.jit": DiscreteEncoder(config),
        "decoder.jit": DiscreteDecoder(config),
        "autoencoder.jit": DiscreteAutoencoder(config),
    }


def autoencoder_shapes(config: TokenizerConfig) -> dict[str, tuple[int, ...]]:
    """Every official parameter name of a tokenizer and its shape, without allocating weights."""
    from components.lib.cosmos.formats.names import is_ignorable

    with torch.device("meta"):
        network = networks(config)["autoencoder.jit"]
    return {
        name: tuple(tensor.shape)
        for name, tensor in network.state_dict().items()
        if not is_ignorable(name)
    }
