"""The Cosmos-1.0 video tokenizers: continuous CV8x8x8 and discrete DV8x16x16.

A causal autoencoder on diffusers' Cosmos blocks. Videos longer than the model's window are coded
window by window, each on its own, as the reference does: memory stays bounded and any window can
be decoded alone, at the price of a visible seam between windows. Large pictures can be coded in
overlapping tiles that are blended linearly.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_cosmos import (
    CosmosCausalConv3d,
    CosmosDecoder3d,
    CosmosEncoder3d,
)
from torch import Tensor, nn

from components.lib.contract import UserError
from components.lib.cosmos.tokenizer.config import TOKENIZER_PRESETS, TokenizerConfig
from components.lib.cosmos.tokenizer.fsq import FSQ
from components.lib.cosmos.tokenizer.haar import HaarPatch, HaarUnpatch
from components.lib.cosmos.tokenizer.names import publish_conv, publish_decoder, publish_encoder
from components.lib.cosmos.tokenizer.tiling import tiled

__all__ = ["TOKENIZER_PRESETS", "CosmosTokenizer", "TokenizerConfig", "default_statistics"]


class CosmosTokenizer(nn.Module):
    """Encoder, quantiser (discrete only) and decoder. Videos are [B, 3, T, H, W] in [-1, 1].

    Inputs are cast to the parameters' dtype, and results come back in it. UserError when a video
    has not 8k + 1 frames or a size that 16 does not divide.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        shape = {
            "num_resnet_blocks": config.res_blocks,
            "patch_size": config.patch,
            "spatial_compression_ratio": config.spatial,
            "temporal_compression_ratio": config.temporal,
        }
        self.encoder = CosmosEncoder3d(
            3, config.z_channels, block_out_channels=config.encoder_channels, **shape
        )
        self.decoder = CosmosDecoder3d(
            config.z_channels, 3, block_out_channels=config.decoder_channels, **shape
        )
        self.encoder.patch_embed = HaarPatch(config.patch)
        self.decoder.unpatch_embed = HaarUnpatch(config.patch)
        wide, narrow = config.z_channels, config.latent_channels
        self.quant_conv = CosmosCausalConv3d(wide, narrow, kernel_size=1, padding=0)
        self.post_quant_conv = CosmosCausalConv3d(narrow, wide, kernel_size=1, padding=0)
        publish_encoder(self.encoder)
        publish_decoder(self.decoder)
        publish_conv(self, "quant_conv")
        publish_conv(self, "post_quant_conv")
        self.fsq = FSQ(config.fsq_levels) if config.fsq_levels is not None else None
        self._statistics = default_statistics(config)

    @property
    def discrete(self) -> bool:
        """Whether latents are quantised codes."""
        return self.fsq is not None

    def forward(self, video: Tensor) -> Tensor:
        """`reconstruct` of one window, the form that is trained and traced."""
        return self._decode_window(self._encode_window(video))

    def encode(self, video: Tensor, *, tile: int | None = None) -> Tensor:
        """Video -> latent [B, C, T', H', W'] (discrete: codes).

        ``tile``: code in tiles of that many pixels, when memory is short. Latents are as the
        network gives them; `normalise` makes them what the DiT is trained on.
        """
        self.check_video(video.shape)
        return torch.cat([self._tiled_encode(part, tile) for part in self._windows(video)], dim=2)

    def decode(
        self, latent: Tensor, *, frames: int | None = None, tile: int | None = None
    ) -> Tensor:
        """Latent (discrete: codes) -> video. ``frames`` cuts what padding the last window added."""
        if latent.shape[1] != self.config.latent_channels:
            raise ValueError(
                f"the latent has {latent.shape[1]} channels, "
                f"the tokenizer has {self.config.latent_channels}"
            )
        parts = latent.split(self.config.window_latents, dim=2)
        video = torch.cat([self._tiled_decode(part, tile) for part in parts], dim=2)
        return video if frames is None else video[:, :, :frames]

    def reconstruct(self, video: Tensor, *, tile: int | None = None) -> Tensor:
        """Encode and decode; the result has the shape of the input."""
        return self.decode(self.encode(video, tile=tile), frames=video.shape[2], tile=tile)

    def encode_indices(self, video: Tensor, *, tile: int | None = None) -> Tensor:
        """Discrete: video -> int64 code indices [B, T', H', W']."""
        return self._quantiser().indices(self.encode(video, tile=tile))

    def decode_indices(
        self, indices: Tensor, *, frames: int | None = None, tile: int | None = None
    ) -> Tensor:
        """Discrete: code indices -> video."""
        return self.decode(self.codes(indices), frames=frames, tile=tile)

    def codes(self, indices: Tensor) -> Tensor:
        """Discrete: code indices [B, T', H', W'] -> codes [B, C, T', H', W']."""
        return self._quantiser().codes_of(indices, self._dtype())

    @property
    def latent_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, fp32 [C, latent frames of a window], on the CPU."""
        return self._statistics

    def set_latent_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Replace the statistics, e.g. with those saved beside the weights."""
        wanted = (self.config.latent_channels, self.config.window_latents)
        for name, table in (("mean", mean), ("std", std)):
            if tuple(table.shape) != wanted:
                raise UserError(
                    f"Latent {name} has shape {tuple(table.shape)}; this tokenizer needs {wanted}."
                )
        if not bool((std > 0).all()):
            raise UserError("Latent standard deviations must be positive.")
        self._statistics = (mean.detach().float().cpu(), std.detach().float().cpu())

    def extra_state_tensors(self) -> dict[str, Tensor]:
        """What a model folder stores beside the state dict: the latent statistics."""
        mean, std = self._statistics
        return {"latents_mean": mean, "latents_std": std}

    def normalise(self, latent: Tensor) -> Tensor:
        """(latent - mean) / std per channel and latent frame of its window; fp32."""
        mean, std = self._columns(latent)
        return (latent.float() - mean) / std

    def denormalise(self, latent: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        mean, std = self._columns(latent)
        return latent.float() * std + mean

    def check_video(self, shape: torch.Size | tuple[int, ...]) -> None:
        """UserError when a video of this shape cannot be coded without losing or adding pixels."""
        if len(shape) != 5 or shape[1] != 3:
            raise UserError(
                f"A video must be [batch, 3, frames, height, width], not {list(shape)}."
            )
        self.config.check_clip(*shape[2:])

    def _windows(self, video: Tensor) -> Iterator[Tensor]:
        for part in video.split(self.config.window, dim=2):
            missing = -(part.shape[2] - 1) % self.config.temporal
            last = part[:, :, -1:].expand(-1, -1, missing, -1, -1)
            yield torch.cat([part, last], dim=2) if missing else part

    def _tiled_encode(self, video: Tensor, tile: int | None) -> Tensor:
        return _in_tiles(self._encode_window, video, tile, self.config, 1, self.config.spatial)

    def _tiled_decode(self, latent: Tensor, tile: int | None) -> Tensor:
        return _in_tiles(self._decode_window, latent, tile, self.config, self.config.spatial, 1)

    def _encode_window(self, video: Tensor) -> Tensor:
        z = self.quant_conv(self.encoder(video.to(self._dtype())))
        return z if self.fsq is None else self.fsq.quantise(z)

    def _decode_window(self, latent: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latent.to(self._dtype())))

    def _columns(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        frames = torch.arange(latent.shape[2]) % self.config.window_latents
        mean, std = (
            table[None, :, frames, None, None].to(latent.device) for table in self._statistics
        )
        return mean, std

    def _quantiser(self) -> FSQ:
        if self.fsq is None:
            raise UserError("This tokenizer is continuous: it has latents, not code indices.")
        return self.fsq

    def _dtype(self) -> torch.dtype:
        return self.quant_conv.weight.dtype


def _in_tiles(
    code: Callable[[Tensor], Tensor],
    x: Tensor,
    tile: int | None,
    config: TokenizerConfig,
    up: int,
    down: int,
) -> Tensor:
    if tile is None:
        return code(x)
    if tile < 4 * config.size_multiple or tile % config.size_multiple:
        raise UserError(
            f"A tile of {tile} pixels does not work; use a multiple of {config.size_multiple} "
            f"of at least {4 * config.size_multiple}."
        )
    unit = config.spatial if up > 1 else 1  # latents are cut in latent positions
    return tiled(
        code, x, tile // unit, tile // 4 // config.spatial * config.spatial // unit, up, down
    )


@cache
def _published_statistics(name: str) -> tuple[list[list[float]], list[list[float]]]:
    data = json.loads((Path(__file__).parent / f"latent_stats_{name}.json").read_text())
    return data["mean"], data["std"]


def default_statistics(config: TokenizerConfig) -> tuple[Tensor, Tensor]:
    """Mean and std, fp32 [C, latent frames of a window]: published, or 0 and 1 without a table."""
    if config.statistics == "none":
        shape = (config.latent_channels, config.window_latents)
        return torch.zeros(shape, device="cpu"), torch.ones(shape, device="cpu")
    mean, std = _published_statistics(config.statistics)
    return torch.tensor(mean, device="cpu"), torch.tensor(std, device="cpu")
