"""Settings of the stage: clips, pictures, shards."""

from __future__ import annotations

from pydantic import Field

from components.lib.contract import StageConfig, manifest_input, operational
from components.lib.stage import StageSpec

FRAMES_PER_TIMEOUT_SECOND = 10
SPEC = StageSpec(name="tar_sharding", version="1", kind="tokenizer-dataset")


class TarShardingConfig(StageConfig):
    """Settings of the stage."""

    videos: str = manifest_input("Manifest of video_discovery.")
    clip_frames: int = Field(
        default=0,
        ge=0,
        description="Cut videos into clips of this many frames; 0 keeps them whole.",
    )
    scenes: bool = Field(
        default=False,
        description="Cut videos where one scene ends and another begins; with clip_frames, clips "
        "lie within scenes.",
    )
    scene_threshold: float = Field(
        default=15.0,
        gt=0,
        le=255,
        description="Least mean change from frame to frame at a cut, in levels of 0 to 255.",
    )
    min_scene_frames: int = Field(
        default=9, ge=1, description="A cut that would leave a shorter scene is passed over."
    )
    max_shard_bytes: int = Field(
        default=1 << 30, gt=0, description="Largest shard, unless one video is."
    )
    max_shard_samples: int = Field(default=10_000, gt=0, description="Most samples of a shard.")
    seed: int = Field(default=0, description="Seed of the order of videos.")
    crf: int = Field(
        default=18,
        ge=0,
        le=51,
        description="x264 quality of clips that must be encoded again (0: exact).",
    )
    max_bad_fraction: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Fail when a greater share of the videos cannot be packed.",
    )
    workers: int = operational(0, "Shards made at once; 0 means one per core.", ge=0)
    timeout_s: float = operational(
        600.0, "Longest time to cut one video, plus 1 s per 10 of its frames.", gt=0
    )

    def timeout_for(self, frames: int) -> float:
        """Seconds that a video of so many frames may take."""
        return self.timeout_s + frames / FRAMES_PER_TIMEOUT_SECOND


CONFIG = TarShardingConfig
