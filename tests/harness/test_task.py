"""The adapter between KFP artifacts and stages."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from components.harness.run_notes import read_notes
from components.harness.task import run_task
from components.lib.environment import ERROR_FILE, RUN_ID, RUN_JOURNAL
from components.lib.manifest import load_manifest
from components.lib.progress import LineProgress
from components.lib.store import ObjectStore


class Artifact:
    """What KFP hands to a component."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.metadata: dict[str, Any] = {}


@pytest.fixture
def environment(
    store_env: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> dict[str, Path]:
    for name, value in store_env.items():
        monkeypatch.setenv(name, value)
    files = {"journal": tmp_path / "journal.jsonl", "error": tmp_path / "error.txt"}
    monkeypatch.setenv(RUN_JOURNAL, str(files["journal"]))
    monkeypatch.setenv(ERROR_FILE, str(files["error"]))
    return files


def test_a_stage_runs_as_a_task(
    environment: dict[str, Path],
    store: ObjectStore,
    storage_root: str,
    clips: dict[str, Path],
    tmp_path: Path,
) -> None:
    output, metrics = Artifact(tmp_path / "deep" / "videos"), Artifact(tmp_path / "metrics")
    run_task(
        "video_discovery",
        {"storage_root": storage_root, "source": str(clips["bikes"]), "prompt": "bikes"},
        output,
        metrics=metrics,
        overrides=["video_discovery.min_frames=10", "trainer.max_steps=3"],
    )
    manifest = load_manifest(output.path, store)
    assert manifest.kind == "videos"
    assert output.metadata["content"] == manifest.content
    assert load_manifest(output.metadata["manifest"], store) == manifest
    # counts, and what was waited for
    assert metrics.metadata["videos"] == 1 and metrics.metadata["frames"] == 250
    for name in ("fetch_seconds", "decode_seconds", "files_per_second", "seconds"):
        assert metrics.metadata[name] == manifest.timing[name]
    assert manifest.timing["decode_seconds"] > 0
    record = json.loads(environment["journal"].read_text())
    assert (record["stage"], record["reused"]) == ("video_discovery", False)


def test_a_users_mistake_ends_the_task_with_its_sentence(
    environment: dict[str, Path], storage_root: str, tmp_path: Path
) -> None:
    output = Artifact(tmp_path / "videos")
    with pytest.raises(SystemExit) as end:
        run_task(
            "video_discovery",
            {"storage_root": storage_root, "source": "/nowhere/at/all", "prompt": ""},
            output,
        )
    assert end.value.code == 1
    assert "/nowhere/at/all" in environment["error"].read_text()
    assert not Path(output.path).exists()


def test_a_task_s_note_says_which_of_its_stage_s_tasks_it_is(
    environment: dict[str, Path],
    store: ObjectStore,
    storage_root: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(RUN_ID, "night-1")
    for role in ("dit", "t5"):
        with pytest.raises(SystemExit):
            run_task(
                "checkpoint_fetch",
                {"storage_root": storage_root, "source": "file:///nowhere", "role": role},
                Artifact(tmp_path / role),
            )
    notes = read_notes(store, storage_root, "night-1")
    assert [note.name for note in notes] == [
        "checkpoint_fetch (role=dit)",
        "checkpoint_fetch (role=t5)",
    ]


def test_progress_without_a_terminal_says_each_total_once() -> None:
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, keep = logging.getLogger("cosmos"), Keep()
    before = logger.level
    logger.addHandler(keep)
    logger.setLevel(logging.INFO)
    try:
        with LineProgress(every_s=0).task("encode", total=2, unit="clips") as task:
            task.advance()
            task.advance()
    finally:
        logger.removeHandler(keep)
        logger.setLevel(before)
    assert len(lines) == 2
    assert "encode: 1/2 clips" in lines[0]
    assert "encode: 2/2 clips" in lines[1]
