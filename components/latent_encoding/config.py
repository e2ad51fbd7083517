"""Settings of the stage. Imports no torch."""

from __future__ import annotations

import itertools
from typing import Literal, Self

from pydantic import Field, model_validator

from components.lib.contract import StageConfig, manifest_input, operational
from components.lib.cosmos.tokenizer.config import TOKENIZER_PRESETS, TokenizerConfig
from components.lib.stage import StageSpec
from components.lib.video.selection import Size, parse_size

SPEC = StageSpec(name="latent_encoding", version="1", kind="latent-dataset")
DEFAULT_PREVIEWS = 24


class LatentEncodingConfig(StageConfig):
    """Settings of the stage."""

    videos: str = manifest_input("Video manifest of video_discovery.")
    checkpoint: str = manifest_input("Tokenizer checkpoint manifest of checkpoint_fetch.")
    prompts: str | None = manifest_input(
        "Manifest of prompt_embedding. Read for layout 'guide' only.", default=None
    )
    frames: int = Field(121, description="Frames in a clip: 8k+1.", ge=1)
    height: int = Field(704, description="Height of a clip in pixels, a multiple of 16.")
    width: int = Field(1280, description="Width of a clip in pixels, a multiple of 16.")
    size_buckets: tuple[str, ...] = Field(
        (),
        description="Sizes such as 704x1280 (height x width); each video takes the one nearest "
        "to its aspect ratio. Replaces height and width.",
    )
    length_buckets: tuple[int, ...] = Field(
        (),
        description="Clip lengths; each video takes the longest that fits. Replaces frames.",
    )
    chunks_per_video: int = Field(20, description="Clips to take from each video.", ge=1)
    strategy: Literal["random", "spread", "all"] = Field(
        "random",
        description="Where clips start: 'random', 'spread' evenly, or 'all' clips end to end.",
    )
    resize: Literal["crop", "pad", "stretch"] = Field(
        "crop",
        description="How frames reach the clip's size: cut the sides, add black bars, or distort.",
    )
    fps: float | None = Field(
        None, description="Convert to this frame rate; unset keeps each video's own.", gt=0
    )
    seed: int = Field(0, description="Decides which clips are taken, with each video's content.")
    layout: Literal["shards", "guide"] = Field(
        "shards", description="Tar shards, or the separate files of NVIDIA's guide."
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto",
        description="Arithmetic of the encoder; 'auto' is bfloat16 where the device has it. "
        "Latents are stored as bfloat16 always.",
    )
    shard_mb: int = Field(512, description="Size of a shard at most, in MB.", ge=1)
    shard_samples: int = Field(1024, description="Samples in a shard at most.", ge=1)
    previews: int = Field(
        DEFAULT_PREVIEWS, description="Clips shown on the contact sheet.", ge=0, le=200
    )
    max_bad_fraction: float = Field(
        0.1, description="Fail when more than this part of the videos is unusable.", ge=0, le=1
    )
    part_index: int | None = operational(
        None,
        "Make only this part of the shards and leave the manifest to a run without a part.",
        ge=0,
    )
    part_count: int = operational(1, "Into how many parts the work is divided.", ge=1)
    device: str = operational(
        "auto",
        "'auto' (all GPUs, or the CPU without one), 'cpu', or a list such as 'cuda:0,cuda:1'.",
    )
    batch_clips: int = operational(1, "Clips in one forward pass.", ge=1, le=64)
    decode_workers: int = operational(0, "Decoding processes for each device; 0: by cores.", ge=0)
    decode_timeout_s: float = operational(
        300.0, "Give a video up when its decoder makes no progress for so long.", gt=0
    )
    downloads: int = operational(4, "Videos fetched at the same time.", ge=1, le=64)
    save_every_s: float = operational(
        60.0, "Upload finished samples of an unfinished shard this often.", ge=0
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self.check_clips(TOKENIZER_PRESETS["CV8x8x8"])
        if self.part_index is not None and self.part_index >= self.part_count:
            raise ValueError(
                f"part_index {self.part_index} does not exist with part_count {self.part_count}"
            )
        return self

    def check_clips(self, tokenizer: TokenizerConfig) -> None:
        """Raise UserError when a clip that may be chosen does not fit the tokenizer."""
        for frames, (height, width) in itertools.product(self.lengths, self.sizes):
            tokenizer.check_clip(frames, height, width)

    def manifest_refs(self) -> dict[str, str]:
        """The inputs that are read: latents in shards do not depend on what their prompts mean."""
        refs = super().manifest_refs()
        if self.layout != "guide":
            refs.pop("prompts", None)
        return refs

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The clip sizes to choose from, as (height, width)."""
        if self.size_buckets:
            return tuple(parse_size(text) for text in self.size_buckets)
        return ((self.height, self.width),)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The clip lengths to choose from, in frames."""
        return self.length_buckets or (self.frames,)


CONFIG = LatentEncodingConfig
