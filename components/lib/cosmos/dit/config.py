"""Settings of the diffusion transformer and the published sizes. Imports no torch."""

from __future__ import annotations

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from components.lib.contract import Frozen


class DiTConfig(Frozen):
    """Geometry of one diffusion transformer.

    Sizes named ``max_*`` are in latent units before patching. ``rope_ratio`` stretches the rotary
    frequencies per axis (time, height, width).
    """

    layers: PositiveInt = 28
    hidden: PositiveInt = 4096
    heads: PositiveInt = 32
    ffn: PositiveInt = 16384
    text_dim: PositiveInt = 1024
    text_tokens: PositiveInt = 512
    adaln_rank: PositiveInt = 256
    latent_channels: PositiveInt = 16
    condition_mask: bool = Field(default=False, description="Video2World: one more input channel")
    patch_spatial: PositiveInt = 2
    patch_temporal: PositiveInt = 1
    max_frames: PositiveInt = 128
    max_height: PositiveInt = 240
    max_width: PositiveInt = 240
    rope_ratio: tuple[float, float, float] = (2.0, 1.0, 1.0)
    base_fps: PositiveFloat = 24.0
    sigma_data: PositiveFloat = 0.5
    norm_eps: PositiveFloat = 1e-6

    @model_validator(mode="after")
    def _divides(self) -> DiTConfig:
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not divisible by heads {self.heads}")
        if self.head_dim % 2 or self.head_dim < 12:
            # 3-D rotary positions split the head in three even parts of at least 4 numbers
            raise ValueError(f"head size {self.head_dim} must be even and at least 12")
        return self

    @property
    def head_dim(self) -> int:
        """Numbers per attention head."""
        return self.hidden // self.heads

    @property
    def in_channels(self) -> int:
        """Channels entering the patch embedding: latent, condition mask (V2W), padding mask."""
        return self.latent_channels + int(self.condition_mask) + 1

    @property
    def patch_volume(self) -> int:
        """Latent positions in one token."""
        return self.patch_temporal * self.patch_spatial**2

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Token grid (T, H, W) of a latent of this size. ValueError when it does not fit."""
        for name, size, patch, limit in (
            ("frames", frames, self.patch_temporal, self.max_frames),
            ("height", height, self.patch_spatial, self.max_height),
            ("width", width, self.patch_spatial, self.max_width),
        ):
            if size <= 0 or size % patch or size > limit:
                raise ValueError(
                    f"latent {name} {size} must be a multiple of {patch} and at most {limit}"
                )
        return (
            frames // self.patch_temporal,
            height // self.patch_spatial,
            width // self.patch_spatial,
        )


_14B = DiTConfig(layers=36, hidden=5120, heads=40, ffn=20480, rope_ratio=(2.0, 2.0, 2.0))

DIT_PRESETS: dict[str, DiTConfig] = {
    "7B": DiTConfig(),
    "14B": _14B,
    "7B-V2W": DiTConfig(condition_mask=True),
    "14B-V2W": _14B.model_copy(update={"condition_mask": True}),
    "tiny": DiTConfig(layers=4, hidden=128, heads=4, ffn=512, text_dim=64, adaln_rank=16),
}
