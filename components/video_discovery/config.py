"""Settings of the stage: the source, filters, the split, what the ledger does."""

from __future__ import annotations

from pydantic import Field

from components.lib.contract import StageConfig, operational
from components.lib.stage import StageSpec

SPEC = StageSpec(name="video_discovery", version="1", kind="videos")


DEFAULT_PATTERN = (
    r"(?:^|/)(?:drive|trip|session)[=_-](?P<drive>[^/.]+)"
    r"|(?:^|/)(?:vehicle|car|truck|robot)[=_-](?P<vehicle>[^/.]+)"
)


class VideoDiscoveryConfig(StageConfig):
    """Settings of the stage. A filter that is 0 is off."""

    source: str = Field(
        description="Folder, file, s3://bucket/prefix or hf://datasets/owner/name[@revision][/dir]."
    )
    prompt: str = Field(
        default="",
        description="Prompt of videos that have none of their own; {subject} is filled in.",
    )
    subject: str = Field(default="", description="What {subject} in the prompt stands for.")
    table: str = Field(
        default="",
        description="JSONL or CSV (path or s3://) with columns file, prompt, drive, vehicle.",
    )
    path_pattern: str = Field(
        default=DEFAULT_PATTERN,
        description="Regular expression whose groups 'drive' and 'vehicle' are found in paths.",
    )
    min_frames: int = Field(default=1, ge=1, description="Fewest frames of a usable video.")
    min_width: int = Field(default=0, ge=0, description="Least width in pixels, as shown.")
    min_height: int = Field(default=0, ge=0, description="Least height in pixels, as shown.")
    min_duration: float = Field(default=0, ge=0, description="Least length in seconds.")
    max_black: float = Field(
        default=0,
        ge=0,
        le=255,
        description="Drop videos whose frames all stay this dark (16 is usual).",
    )
    max_still: float = Field(
        default=0, ge=0, le=255, description="Drop videos whose pictures change less (2 is usual)."
    )
    max_near_duplicates: float = Field(
        default=0, ge=0, le=1, description="Drop videos with a greater share of repeated frames."
    )
    check: str = Field(
        default="ends",
        pattern="^(first|ends|all)$",
        description="How much of each video to decode: first frame, both ends, all.",
    )
    validation_fraction: float = Field(
        default=0.1, ge=0, lt=1, description="Share of drives (or videos) held out for validation."
    )
    seed: int = Field(default=0, description="Seed of the choice of held-out drives.")
    max_bad_fraction: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Fail when a greater share of the videos is unreadable.",
    )
    ledger: str = Field(
        default="default", description="Name of the ledger that says what is processed."
    )
    only_new: bool = Field(
        default=False, description="Give only videos that the ledger does not hold."
    )
    min_new_videos: int = Field(
        default=0,
        ge=0,
        description="With only_new: with fewer new videos than this, next_step is 'wait'.",
    )
    old_per_new: float = Field(
        default=0,
        ge=0,
        description="With only_new: add this many old training videos per new one, so that a "
        "model that learns the new ones does not forget.",
    )
    max_old_held_out: int = Field(
        default=16, ge=0, description="With old_per_new: at most this many old held-out videos."
    )
    workers: int = operational(0, "Decoding processes; 0 means one per core.", ge=0)
    timeout_s: float = operational(
        120.0, "Longest time to inspect a video, plus 1 s per 4 MB of it.", gt=0
    )


CONFIG = VideoDiscoveryConfig
