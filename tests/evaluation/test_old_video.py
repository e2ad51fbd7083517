"""New and older held-out video, told apart by what discovery marked."""

from __future__ import annotations

from typing import Any

import pytest

from components.evaluation.config import EvaluationConfig
from components.evaluation.stage import run
from components.lib.manifest import load_manifest
from components.lib.report.scores import parse_evaluation
from components.lib.video.records import OLD_MARK, record_line


@pytest.fixture
def mark(diffusion: Any, publish: Any) -> Any:
    """Publish the videos again, with some of them marked as old."""

    def write(*numbers: int) -> None:
        records = [
            record.model_copy(update={"extra": {OLD_MARK: True}}) if i in numbers else record
            for i, record in enumerate(diffusion.records)
        ]
        lines = b"".join(map(record_line, records))
        summary = {"counts": {"old": len(numbers)}}
        publish("videos", "v", {"videos.jsonl": lines}, summary=summary)

    return write


@pytest.fixture
def evaluate(diffusion: Any, store: Any, storage_root: Any, progress: Any, read: Any) -> Any:
    def go() -> Any:
        config = EvaluationConfig(
            training=diffusion.training, checkpoint=diffusion.base, data=diffusion.data,
            storage_root=storage_root, sigmas=3, shown=0, samples=0,
        )  # fmt: skip
        result = run(config, store, progress)
        return result, parse_evaluation(read(result.manifest, "evaluation.json"), "")

    return go


def names(evaluation: Any) -> dict[str, set[str]]:
    return {
        name: {clip.video.rsplit("/", 1)[-1] for clip in by_role["candidate"]}
        for name, by_role in evaluation.sets.items()
    }


def test_older_clips_are_a_set_of_their_own(diffusion: Any, mark: Any, evaluate: Any) -> None:
    plain, everything = evaluate()
    assert names(everything) == {"held-out": {"video3.mp4", "video4.mp4", "video5.mp4"}}
    mark(0, 5)  # one of the training videos, one of the held-out ones
    result, parted = evaluate()
    assert result.manifest.address != plain.manifest.address
    assert names(parted) == {"held-out": {"video3.mp4", "video4.mp4"}, "old": {"video5.mp4"}}
    both = {clip.video: clip.values for s in parted.sets.values() for clip in s["candidate"]}
    whole = everything.clips("candidate")
    assert both == {clip.video: clip.values for clip in whole}, "parting changes no figure"
    assert evaluate()[0].reused


def test_held_out_clips_of_one_kind_stay_together_and_that_is_said(
    diffusion: Any, mark: Any, evaluate: Any, store: Any
) -> None:
    mark(3, 4, 5)
    result, found = evaluate()
    assert names(found) == {"held-out": {"video3.mp4", "video4.mp4", "video5.mp4"}}
    assert any("could not be told apart" in note for note in found.notes)
    assert load_manifest(result.manifest_uri, store).summary["notes"] == list(found.notes)
