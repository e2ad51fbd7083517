"""Five days of a fleet, worked out by hand.

Every video is a drive of its own, so a drive's name alone decides the split: it is held out when
the hash of "drive::<name>" lies below validation_fraction = 0.5 (positions below). min_new_videos
is 3 and old_per_new 0.5.

| day | arrives                                    | new (train + held out) | old mixed in        |
|-----|--------------------------------------------|------------------------|---------------------|
| 1   | oak ash, elm yew box; junk; a copy of oak  | oak ash + elm yew box  | none                |
| 2   | ash again under another name; bay          | bay: too few           | none                |
| 3   | fir, nut hop koa                           | bay fir + nut hop koa  | 1 of oak ash; all 3 |
| 4   | none; the machine dies, is started again   | the same               | the same            |
| 5   | none, after a rollback; then a bad sidecar | none                   | none                |

Day 1 trains for a moment and is promoted (better than its random base): version 1. Day 3 trains at
an absurd learning rate and is refused, so its videos stay new. Day 4 takes the same videos with the
usual settings and is promoted: version 2. Day 5 rolls back to version 1; the ledger keeps what was
used.
"""

import subprocess
from typing import Any

import pytest

from components.lib.lineage import models_that_used
from components.lib.manifest import load_manifest
from components.lib.registry import models_root
from components.lib.report.scores import FILE_NAME, parse_evaluation
from components.lib.video.records import is_old, position, read_records
from tests.fleet.conftest import CLI, MODEL, Fleet

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(1500)]

POSITIONS = {
    "oak": 0.562, "ash": 0.768, "bay": 0.691, "fir": 0.724,
    "elm": 0.145, "yew": 0.204, "box": 0.416, "nut": 0.101, "hop": 0.238, "koa": 0.358,
}  # fmt: skip
SEEDS = {drive: number for number, drive in enumerate(POSITIONS)}
DAY_1 = {"oak", "ash", "elm", "yew", "box"}
DAY_3 = {"bay", "fir", "nut", "hop", "koa"}


def test_the_positions_that_the_table_rests_on() -> None:
    for drive, place in POSITIONS.items():
        assert position(f"drive::{drive}", 0) == pytest.approx(place, abs=5e-4)


def counts(report: dict[str, Any]) -> dict[str, int]:
    names = ("listed", "new", "old", "unreadable", "duplicate", "already_processed")
    return {name: report["counts"][name] for name in names}


def manifest_of(fleet: Fleet, report: dict[str, Any], stage: str) -> Any:
    (task,) = [task for task in report["tasks"] if task["stage"] == stage]
    return load_manifest(task["manifest"], fleet.store)


def versions_and_pointer(fleet: Fleet) -> tuple[list[int], list[tuple[str, int, int]]]:
    states = [(str(state.kind), state.version, state.replaced) for state in fleet.pointers()]
    return fleet.registry.versions(), states


def test_five_days(fleet: Fleet) -> None:
    day_1(fleet)
    day_2(fleet)
    day_3(fleet)
    day_4(fleet)
    day_5(fleet)


def day_1(fleet: Fleet) -> None:
    for drive in sorted(DAY_1):
        fleet.arrives(drive, SEEDS[drive])
    fleet.arrives_broken("drive=zzz/junk.mp4", b"this is no video")
    fleet.arrives("oak", SEEDS["oak"], name="copy.mp4")
    report = fleet.retrain("trainer.max_steps=6")
    assert report["outcome"] == "promoted", report["sentence"]
    assert counts(report) == {
        "listed": 7, "new": 5, "old": 0, "unreadable": 1, "duplicate": 1, "already_processed": 0,
    }  # fmt: skip
    assert fleet.ledger() == DAY_1
    assert versions_and_pointer(fleet) == ([1], [("promotion", 1, 0)])


def day_2(fleet: Fleet) -> None:
    fleet.arrives("another-name", SEEDS["ash"])
    fleet.arrives("bay", SEEDS["bay"])
    report = fleet.retrain()
    assert report["outcome"] == "nothing to do", report["sentence"]
    assert [task["stage"] for task in report["tasks"]] == ["video_discovery"]
    assert counts(report)["new"] == 1 and counts(report)["duplicate"] == 2
    assert fleet.ledger() == DAY_1
    assert versions_and_pointer(fleet) == ([1], [("promotion", 1, 0)])


def day_3(fleet: Fleet) -> None:
    for drive in ("fir", "nut", "hop", "koa"):
        fleet.arrives(drive, SEEDS[drive])
    report = fleet.retrain("trainer.max_steps=6", "optim.config.lr=0.1")
    assert report["outcome"] == "refused", report["sentence"]
    assert counts(report) == {
        "listed": 13, "new": 5, "old": 4, "unreadable": 1, "duplicate": 2, "already_processed": 5,
    }  # fmt: skip
    failed = {rule["name"] for rule in report["decision"]["rules"] if not rule["passed"]}
    assert "better beyond noise" in failed
    assert fleet.ledger() == DAY_1
    assert versions_and_pointer(fleet) == ([1], [("promotion", 1, 0)])


def day_4(fleet: Fleet) -> None:
    fleet.killed_while_training()
    assert fleet.ledger() == DAY_1
    report = fleet.retrain()
    assert "resuming from" in fleet.log()
    assert report["outcome"] == "promoted", report["sentence"]
    reused = {task["stage"] for task in report["tasks"] if task["reused"]}
    assert reused == {"video_discovery", "checkpoint_fetch", "tar_sharding"}
    check_what_was_mixed(fleet, report)
    check_the_evaluation(fleet, report)
    assert fleet.ledger() == DAY_1 | DAY_3
    assert versions_and_pointer(fleet) == ([1, 2], [("promotion", 1, 0), ("promotion", 2, 1)])


def check_what_was_mixed(fleet: Fleet, report: dict[str, Any]) -> None:
    found = manifest_of(fleet, report, "video_discovery")
    records = list(read_records(found, fleet.store))
    new = {record.drive: record.split for record in records if not is_old(record)}
    old = {record.drive: record.split for record in records if is_old(record)}
    held_out = dict.fromkeys(("nut", "hop", "koa"), "validation")
    assert new == {"bay": "train", "fir": "train", **held_out}
    training = [drive for drive, split in old.items() if split == "train"]
    assert len(training) == 1 and fleet_name(training[0]) in {"oak", "ash"}
    assert {drive for drive, split in old.items() if split == "validation"} == {"elm", "yew", "box"}


def fleet_name(drive: str) -> str:
    """The listing meets ash's second name first."""
    return "ash" if drive == "another-name" else drive


def check_the_evaluation(fleet: Fleet, report: dict[str, Any]) -> None:
    """It started from production and was measured on new and on older held-out video."""
    judged = manifest_of(fleet, report, "evaluation")
    evaluation = parse_evaluation(fleet.store.get_bytes(judged.file_uri(FILE_NAME)), FILE_NAME)
    assert evaluation.models["base"].name == evaluation.models["production"].name == f"{MODEL}@1"
    drives = {name: {c.drive for c in s["candidate"]} for name, s in evaluation.sets.items()}
    assert drives == {"held-out": {"nut", "hop", "koa"}, "old": {"elm", "yew", "box"}}
    names = [rule["name"] for rule in report["decision"]["rules"]]
    assert names == ["better beyond noise", "no regression per drive", "does not forget"]


def day_5(fleet: Fleet) -> None:
    subprocess.run(
        [CLI, "rollback", MODEL, "--storage-root", fleet.root, "--reason", "complaints"],
        env=fleet.env, check=True,
    )  # fmt: skip
    assert fleet.retrain()["outcome"] == "nothing to do"
    fleet.arrives_broken("drive=bay/0.json", b"{")
    report = fleet.retrain(fails=True)
    assert report["outcome"] == "failed"
    assert "drive=bay/0.json" in report["sentence"] and "not JSON" in report["sentence"]

    assert fleet.ledger() == DAY_1 | DAY_3
    states = [("promotion", 1, 0), ("promotion", 2, 1), ("rollback", 1, 2)]
    assert versions_and_pointer(fleet) == ([1, 2], states)
    assert users(fleet, "elm") == {f"{MODEL}@1", f"{MODEL}@2"}
    assert users(fleet, "oak", "copy.mp4") == {f"{MODEL}@1", f"{MODEL}@2"}
    assert users(fleet, "fir") == {f"{MODEL}@2"}


def users(fleet: Fleet, drive: str, name: str = "0.mp4") -> set[str]:
    """Which versions used a drive's video, even after it was deleted."""
    uri = f"{fleet.root}/inbox/drive={drive}/{name}"
    fleet.store.delete(uri)
    return {name for name, _ in models_that_used(fleet.store, models_root(fleet.root), uri)}
