"""What an evaluation measured: one value per clip, model and quantity (``evaluation.json``).

Values are kept per clip and not only as means, because every later question (is the candidate
better, is one drive worse, how wide is the interval) is a paired comparison over source videos,
and because clips of one video are not independent and must be averaged before they are counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import ValidationError

from components.lib.contract import Frozen, UserError
from components.lib.manifest import Manifest, digest_json

ModelRole = Literal["base", "candidate", "production"]
Better = Literal["lower", "higher"]
FILE_NAME = "evaluation.json"
HELD_OUT, OLD = "held-out", "old"


class ClipScore(Frozen):
    """Measurements of one clip. ``clip`` tells clips of one video apart."""

    video: str
    sha256: str
    drive: str = ""
    clip: str
    values: dict[str, float]


class ModelRef(Frozen):
    """Which weights were measured. ``digest`` is `weights_digest`; ``version`` 0 means none."""

    name: str
    digest: str
    manifest: str
    prefix: str = "model/"
    version: int = 0


class Evaluation(Frozen):
    """Everything an evaluation found. ``sets`` is set name -> role -> clips."""

    schema_version: Literal[1] = 1
    family: str
    metric: str
    better: Better
    models: dict[ModelRole, ModelRef]
    sets: dict[str, dict[ModelRole, tuple[ClipScore, ...]]]
    same_video: bool = False
    notes: tuple[str, ...] = ()
    scalars: dict[str, float] = {}

    def clips(self, role: ModelRole, name: str = HELD_OUT) -> tuple[ClipScore, ...]:
        """Measurements of one model on one set; empty when it was not measured there."""
        return self.sets.get(name, {}).get(role, ())


def weights_digest(manifest: Manifest, prefix: str = "model/") -> str:
    """Digest of the weights and config under ``prefix``: equal models have equal digests."""
    held = sorted(
        (entry.path[len(prefix) :], entry.sha256)
        for entry in manifest.files
        if entry.path.startswith(prefix)
    )
    if not held:
        raise UserError(
            f"{manifest.uri} holds no files under '{prefix}', so it is no model. Give the output "
            "of checkpoint_fetch, training or promotion."
        )
    return digest_json(held)


def parse_evaluation(data: bytes, name: str) -> Evaluation:
    """Evaluation from evaluation.json. Raises UserError naming the file."""
    try:
        return Evaluation.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{name} is no evaluation: {where}: {first['msg']}.") from error


def by_video(clips: Sequence[ClipScore], metric: str) -> dict[str, float]:
    """Mean of a quantity over the clips of each source video (key: the video's sha256)."""
    return _grouped({clip.clip: clip.sha256 for clip in clips}, clips, metric)


def by_drive(clips: Sequence[ClipScore], metric: str) -> dict[str, float]:
    """Mean over each drive; a video that names no drive is a drive of its own."""
    return _grouped({clip.clip: clip.drive or clip.video for clip in clips}, clips, metric)


def by_clip(clips: Sequence[ClipScore], metric: str) -> dict[str, float]:
    """The values themselves, by clip."""
    return {clip.clip: clip.values[metric] for clip in clips if metric in clip.values}


def _grouped(
    group_of: Mapping[str, str], clips: Sequence[ClipScore], metric: str
) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for clip in clips:
        if metric in clip.values:
            found.setdefault(group_of[clip.clip], []).append(clip.values[metric])
    return {group: sum(values) / len(values) for group, values in found.items()}
