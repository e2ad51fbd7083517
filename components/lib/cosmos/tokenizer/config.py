"""Settings of the video tokenizers, the published sizes, and the geometry of what they code.

The one place that knows which clips can be coded and what shape their latents have. Imports no
torch, so that configs and plans may ask."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from components.lib.contract import Frozen, UserError


class TokenizerConfig(Frozen):
    """Geometry of one causal video tokenizer.

    ``fsq_levels`` set makes it discrete. ``window`` is the number of frames (8k+1) coded in one
    piece; longer videos are cut into windows. ``statistics`` names the table of latent means and
    standard deviations that a new tokenizer starts with.
    """

    channels: PositiveInt = 128
    multipliers: tuple[int, ...] = (2, 4, 4)
    res_blocks: PositiveInt = 2
    z_channels: PositiveInt = 16
    latent_channels: PositiveInt = 16
    spatial: int = Field(default=8, description="Pixels per latent position along height and width")
    temporal: int = Field(default=8, description="Frames per latent frame")
    patch: int = Field(default=4, description="Size of the Haar patch")
    fsq_levels: tuple[int, ...] | None = None
    window: PositiveInt = 121
    statistics: Literal["cv8x8x8", "none"] = "none"

    @model_validator(mode="after")
    def _consistent(self) -> TokenizerConfig:
        for name in ("spatial", "temporal", "patch"):
            size = getattr(self, name)
            if size < 1 or size & (size - 1):
                raise ValueError(f"{name} {size} is not a power of two")
        if self.patch > min(self.spatial, self.temporal):
            raise ValueError("the Haar patch cannot exceed the compression")
        if self.fsq_levels is not None and len(self.fsq_levels) != self.latent_channels:
            raise ValueError("fsq_levels needs one level per latent channel")
        if (self.window - 1) % self.temporal:
            raise ValueError(f"window {self.window} must be {self.temporal}k + 1 frames")
        return self

    @property
    def size_multiple(self) -> int:
        """Height and width of a video must be multiples of this."""
        return max(16, self.spatial)

    @property
    def window_latents(self) -> int:
        """Latent frames of a full window."""
        return (self.window - 1) // self.temporal + 1

    @property
    def encoder_channels(self) -> tuple[int, ...]:
        """Width of the input projection and of each encoder level."""
        return (self.channels, *(self.channels * m for m in self.multipliers))

    @property
    def decoder_channels(self) -> tuple[int, ...]:
        """Width of each decoder level from the output inwards, then of the middle."""
        widths = tuple(self.channels * m for m in self.multipliers)
        return (*widths, widths[-1])

    def down_steps(self, level: int) -> tuple[bool, bool]:
        """Whether this encoder level halves (space, time). The last level never does."""
        space, time = self._extra_steps()
        return level < space, level < time

    def up_steps(self, order: int) -> tuple[bool, bool]:
        """Whether the ``order``-th decoder level to run (from 0) doubles (space, time)."""
        space, time = self._extra_steps()
        temporal = 0 < order <= time
        return temporal or (order < space and space > time), temporal

    def _extra_steps(self) -> tuple[int, int]:
        """Halvings of (space, time) that the learned levels add to those of the Haar patch."""
        patch = self.patch.bit_length()
        return self.spatial.bit_length() - patch, self.temporal.bit_length() - patch

    def latent_frames(self, frames: int) -> int:
        """Latent frames of a video; a last window that is not full is padded to 8j + 1."""
        whole, rest = divmod(frames, self.window)
        return whole * self.window_latents + (-(-(rest - 1) // self.temporal) + 1 if rest else 0)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(channels, T, H, W) of the latent of a video."""
        side = self.spatial
        return (self.latent_channels, self.latent_frames(frames), height // side, width // side)

    def whole_frames(self, available: int) -> int:
        """Frames of the longest clip that ``available`` frames hold, 8k + 1; 1 when they are none.

        Clips of such a length come back as long as they were."""
        return max(0, available - 1) // self.temporal * self.temporal + 1

    def check_frames(self, frames: int) -> None:
        """UserError unless a clip of so many frames comes back whole."""
        if frames != (near := self.whole_frames(frames)):
            raise UserError(
                f"A clip of {frames} frames does not fit the tokenizer, which takes "
                f"{self.temporal}k + 1 frames. Use {near} or {near + self.temporal}."
            )

    def check_clip(self, frames: int, height: int, width: int) -> None:
        """UserError when a clip of this size cannot be coded without losing or adding pixels."""
        self.check_frames(frames)
        multiple = self.size_multiple
        if any(side < 1 or side % multiple for side in (height, width)):
            near = [max(1, round(side / multiple)) * multiple for side in (width, height)]
            raise UserError(
                f"A clip of {width} x {height} pixels does not fit the tokenizer; width and height "
                f"must be multiples of {multiple}. Use {near[0]} x {near[1]}."
            )


_LEVELS = (8, 8, 8, 5, 5, 5)

TOKENIZER_PRESETS: dict[str, TokenizerConfig] = {
    "CV8x8x8": TokenizerConfig(statistics="cv8x8x8"),
    # no window is published for DV; 49 frames is the clip length of the reference's finetuning
    "DV8x16x16": TokenizerConfig(latent_channels=6, spatial=16, fsq_levels=_LEVELS, window=49),
    "tiny-cv": TokenizerConfig(channels=16),
    "tiny-dv": TokenizerConfig(
        channels=16, latent_channels=6, spatial=16, fsq_levels=_LEVELS, window=49
    ),
}
