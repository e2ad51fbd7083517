"""New video with a sample of old: who is taken, who keeps which split, and when to wait."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.lib.contract import UserError
from components.lib.stage import StageResult
from components.lib.store import ObjectStore
from components.lib.video.ledger import commit_run
from components.lib.video.records import is_old
from tests.conftest import SilentProgress

Discover = Callable[..., StageResult]
Records = Callable[..., Any]
MakeVideo = Callable[..., Path]

MIXED = {"only_new": True, "validation_fraction": 0.5, "old_per_new": 0.5}


@pytest.fixture
def deliver(make_video: MakeVideo, tmp_path: Path) -> Callable[..., None]:
    """deliver(first, last, drive="…"): videos with these numbers, each its own drive by default."""

    def make(first: int, last: int, drive: str = "") -> None:
        for number in range(first, last):
            make_video(tmp_path / f"drive={drive or number}" / f"{number}.mp4", seed=number)

    return make


def parts(found: list[Any]) -> dict[tuple[bool, str], set[str]]:
    sorted_out: dict[tuple[bool, str], set[str]] = {}
    for record in found:
        sorted_out.setdefault((is_old(record), record.split), set()).add(record.name)
    return sorted_out


def test_old_training_video_is_sampled_and_old_held_out_video_stays_held_out(
    discover: Discover, records: Records, store: ObjectStore, storage_root: str,
    deliver: Callable[..., None], tmp_path: Path,
) -> None:  # fmt: skip
    deliver(0, 8)
    first = discover(tmp_path, **MIXED)
    before = parts(records(first))
    assert set(before) == {(False, "train"), (False, "validation")}
    commit_run(store, storage_root, "default", "monday", first.manifest)

    deliver(8, 14)
    second = discover(tmp_path, **MIXED)
    after = parts(records(second))
    new_training = len(after[False, "train"])
    assert new_training + len(after[False, "validation"]) == 6
    assert after[True, "validation"] == before[False, "validation"]
    assert after[True, "train"] < before[False, "train"]
    assert len(after[True, "train"]) == math.ceil(0.5 * new_training)
    assert second.manifest.summary["counts"]["new"] == 6
    assert second.manifest.summary["next_step"] == "train"
    assert discover(tmp_path, **MIXED).reused

    fewer = parts(records(discover(tmp_path, **MIXED, max_old_held_out=1)))
    assert len(fewer[True, "validation"]) == 1
    everything = parts(records(discover(tmp_path, **{**MIXED, "old_per_new": 9})))
    assert everything[True, "train"] == before[False, "train"]


def test_another_round_draws_another_sample(
    discover: Discover, records: Records, store: ObjectStore, storage_root: str,
    deliver: Callable[..., None], tmp_path: Path,
) -> None:  # fmt: skip
    deliver(0, 16)
    commit_run(store, storage_root, "default", "monday", discover(tmp_path, **MIXED).manifest)
    drawn = set()
    for last in (20, 21, 22, 23):
        deliver(16, last)
        chosen = parts(records(discover(tmp_path, **MIXED)))
        drawn.add(frozenset(chosen[True, "train"]))
    assert len(drawn) > 1


def test_later_videos_of_a_known_drive_stay_on_its_side(
    discover: Discover, records: Records, store: ObjectStore, storage_root: str,
    deliver: Callable[..., None], tmp_path: Path,
) -> None:  # fmt: skip
    # two drives: whichever the hash puts first is held out, the other one trained on
    deliver(0, 1, drive="north")
    deliver(1, 2, drive="south")
    first = discover(tmp_path, **MIXED)
    known = {record.drive: record.split for record in records(first)}
    assert set(known.values()) == {"train", "validation"}
    commit_run(store, storage_root, "default", "monday", first.manifest)
    for number, drive in enumerate(("north", "south"), 2):
        deliver(number, number + 1, drive=drive)
    again = [record for record in records(discover(tmp_path, **MIXED)) if not is_old(record)]
    assert {record.drive: record.split for record in again} == known


def test_too_few_new_videos_wait(
    discover: Discover, store: ObjectStore, storage_root: str,
    deliver: Callable[..., None], tmp_path: Path, progress: SilentProgress,
) -> None:  # fmt: skip
    deliver(0, 2)
    waits = discover(tmp_path, only_new=True, min_new_videos=3)
    assert waits.manifest.summary["next_step"] == "wait"
    assert any(line.startswith("2 ") and "min_new_videos=3" in line for line in progress.lines)
    deliver(2, 3)
    goes = discover(tmp_path, only_new=True, min_new_videos=3)
    assert goes.manifest.summary["next_step"] == "train"
    commit_run(store, storage_root, "default", "monday", goes.manifest)
    nothing = discover(tmp_path, only_new=True)
    assert nothing.manifest.summary["next_step"] == "wait"
    assert discover(tmp_path).manifest.summary["next_step"] == "train"


def test_an_emptied_inbox_is_no_mistake_once_there_is_a_ledger(
    discover: Discover, store: ObjectStore, storage_root: str, make_video: MakeVideo,
    tmp_path: Path,
) -> None:  # fmt: skip
    with pytest.raises(UserError, match="There is no video in"):
        discover(tmp_path, only_new=True)
    one = make_video(tmp_path / "0.mp4")
    found = discover(tmp_path, only_new=True)
    commit_run(store, storage_root, "default", "monday", found.manifest)
    one.unlink()
    assert discover(tmp_path, only_new=True).manifest.summary["next_step"] == "wait"
    with pytest.raises(UserError, match="There is no video in"):
        discover(tmp_path)
