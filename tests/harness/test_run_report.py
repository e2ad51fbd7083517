"""The run report: how a run ended, told from the notes its tasks left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components.harness.run_notes import Note, notes_prefix, read_notes
from components.harness.run_report import write_run_report
from components.harness.task import run_report_task
from components.lib.contract import UserError
from components.lib.environment import ERROR_FILE, RUN_ID
from components.lib.manifest import MANIFEST_NAME, Manifest
from components.lib.stage import StageResult
from components.lib.store import ObjectStore

RUN = "night-1"


@pytest.fixture
def env(store_env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name, value in store_env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(RUN_ID, RUN)
    return {RUN_ID: RUN}


@pytest.fixture
def report(store: ObjectStore, storage_root: str, progress: Any) -> Any:
    def write(ended: str, error: str = "") -> tuple[dict[str, Any], str, str]:
        result = write_run_report(store, storage_root, "m", RUN, ended, error, progress)
        read = [
            store.get_bytes(result.manifest.file_uri(name)).decode()
            for name in ("run.json", "summary.md", "report.html")
        ]
        return json.loads(read[0]), read[1], read[2]

    return write


def finished(store: ObjectStore, root: str, stage: str, **summary: Any) -> StageResult:
    uri = f"{root}/{stage}/x/"
    manifest = Manifest(
        kind="evaluation", stage=stage, stage_version="1", address="x", uri=uri, files=(),
        summary=summary,
    )  # fmt: skip
    store.put_bytes(uri + MANIFEST_NAME, manifest.model_dump_json().encode())
    return StageResult(
        manifest=manifest, manifest_uri=uri + MANIFEST_NAME, reused=False, metrics={"psnr": 31.5}
    )


COUNTS = {"listed": 9, "new": 4, "old": 2, "unreadable": 1, "duplicate": 1}


def test_a_promotion_is_told_with_its_rules(
    env: dict[str, str], report: Any, store: ObjectStore, storage_root: str
) -> None:
    Note.begin(env, storage_root, "video_discovery").end(
        finished(store, storage_root, "video_discovery", counts=COUNTS, next_step="train")
    )
    rule = {"name": "does not forget", "passed": True, "sentence": "It <remembers>."}
    decision = {"decision": "promoted", "production": "m@3", "rules": [rule], "pointer": {"n": 3}}
    Note.begin(env, storage_root, "promotion").end(
        finished(store, storage_root, "promotion", **decision)
    )
    found, text, page = report("SUCCEEDED")
    assert (found["outcome"], found["sentence"]) == ("promoted", "m@3 was put in production.")
    assert [task["state"] for task in found["tasks"]] == ["succeeded", "succeeded"]
    assert "9 in the source, 4 new, 2 older ones mixed in, 1 unreadable" in text
    assert "- passed, does not forget: It <remembers>." in text
    assert "It &lt;remembers&gt;." in page and "m@3" in page and "31.5" in page


def test_a_failed_stage_is_quoted_even_after_attempts_that_did_not_help(
    env: dict[str, str], report: Any, store: ObjectStore, storage_root: str
) -> None:
    for _ in range(2):
        Note.begin(env, storage_root, "training").end(error="The loss is not finite.")
    found, text, _ = report("FAILED", "KFP's own words")
    assert found["outcome"] == "failed"
    assert found["sentence"] == "Stage training failed: The loss is not finite."
    assert text.count("| training | failed |") == 2


def test_an_attempt_that_helped_is_no_failure(
    env: dict[str, str], report: Any, store: ObjectStore, storage_root: str
) -> None:
    Note.begin(env, storage_root, "training").end(error="The store was away.")
    Note.begin(env, storage_root, "training").end(finished(store, storage_root, "training"))
    assert report("SUCCEEDED")[0]["outcome"] == "finished"


def test_a_failed_part_is_quoted_whatever_its_sisters_did_later(
    env: dict[str, str], report: Any, store: ObjectStore, storage_root: str
) -> None:
    """Tasks of one stage that run side by side are not attempts of one task."""
    failing = Note.begin(env, storage_root, "latent_encoding", "part_index=0")
    sister = Note.begin(env, storage_root, "latent_encoding", "part_index=1")
    failing.end(error="The disk is full.")
    sister.end(finished(store, storage_root, "latent_encoding"))
    found, text, page = report("FAILED")
    assert found["sentence"] == "Stage latent_encoding (part_index=0) failed: The disk is full."
    assert "| latent_encoding (part_index=1) | done |" in text
    assert "latent_encoding (part_index=1)" in page


def test_a_task_that_was_killed_is_seen_by_its_note(
    env: dict[str, str], report: Any, storage_root: str
) -> None:
    Note.begin(env, storage_root, "latent_encoding")
    found, text, _ = report("FAILED", "OOMKilled")
    assert found["sentence"] == (
        "The run ended as FAILED in stage latent_encoding, which was killed. OOMKilled"
    )
    assert "| latent_encoding | never ended |" in text


def test_too_few_videos_are_said(
    env: dict[str, str], report: Any, store: ObjectStore, storage_root: str
) -> None:
    result = finished(
        store, storage_root, "video_discovery", counts=COUNTS, next_step="wait", source="s3://f/new"
    )
    Note.begin(env, storage_root, "video_discovery").end(result)
    found, _, _ = report("SUCCEEDED")
    assert found["outcome"] == "nothing to do"
    assert found["sentence"].startswith("4 new videos in s3://f/new are not enough")


def test_without_a_run_no_notes_are_left(store: ObjectStore, storage_root: str) -> None:
    Note.begin({}, storage_root, "training").end(error="x")
    assert list(store.list(f"{storage_root}/run_notes/")) == []


def test_a_store_that_is_away_does_not_fail_the_task(
    monkeypatch: pytest.MonkeyPatch, storage_root: str, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    Note.begin({RUN_ID: RUN}, storage_root, "training").end(error="x")


def test_notes_of_strangers_are_named(
    env: dict[str, str], store: ObjectStore, storage_root: str
) -> None:
    store.put_bytes(notes_prefix(storage_root, RUN) + "0-x.json", b"{}")
    with pytest.raises(UserError, match=r"0-x\.json is no note of a task"):
        read_notes(store, storage_root, RUN)


class Artifact:
    """What KFP hands to a component."""

    def __init__(self, path: Path) -> None:
        self.path, self.metadata = str(path), dict[str, Any]()


def test_the_exit_task_fills_its_artifacts_and_leaves_the_first_sentence_alone(
    env: dict[str, str], storage_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence = tmp_path / "sentence"
    sentence.write_text("training: the loss is not finite.")
    monkeypatch.setenv(ERROR_FILE, str(sentence))
    Note.begin(env, storage_root, "training").end(error="The loss is not finite.")
    made = {name: Artifact(tmp_path / name) for name in ("html", "markdown", "output")}
    run_report_task(
        {"storage_root": storage_root, "title": "m"}, "FAILED", "",
        html=made["html"], markdown=made["markdown"], output=made["output"],
    )  # fmt: skip
    assert "<!doctype html>" in Path(made["html"].path).read_text()
    assert Path(made["markdown"].path).read_text().startswith("# m: failed")
    assert made["output"].metadata["kind"] == "run-report"

    monkeypatch.setenv(RUN_ID, "")
    with pytest.raises(SystemExit):
        run_report_task(
            {"storage_root": storage_root, "title": "m"}, "FAILED", "",
            html=made["html"], markdown=made["markdown"], output=made["output"],
        )  # fmt: skip
    assert sentence.read_text() == "training: the loss is not finite."
