"""The commands report, lineage, promote and rollback, as a user types them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import pytest
import typer
from typer.testing import CliRunner, Result

from components.lib.contract import UserError
from components.lib.manifest import (
    MANIFEST_NAME,
    FileEntry,
    InputRef,
    Kind,
    Manifest,
    load_manifest,
)
from components.lib.report.scores import ClipScore, Evaluation, ModelRef, weights_digest
from components.lib.store import ObjectStore
from components.lib.video.records import VideoRecord, record_line
from pipelines.commands import lineage, promote, report, rollback

VIDEO = "s3://fleet/a/one.mp4"
AGAIN = "s3://fleet/b/copy-of-one.mp4"
CONTENT = b"what lies under both names"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
TypeIn = Callable[..., Result]
Runs = list[tuple[str, str]]


class Publish(Protocol):
    """Writes files and a manifest; returns the manifest's URI."""

    def __call__(
        self,
        kind: Kind,
        name: str,
        files: Mapping[str, bytes],
        inputs: Sequence[tuple[str, str]] = (),
        config: Mapping[str, Any] | None = None,
    ) -> str: ...


@pytest.fixture
def type_in(store_env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> TypeIn:
    """Run a command module with arguments against the test's store."""
    for key, value in store_env.items():
        if key.startswith("AWS_"):
            monkeypatch.setenv(key, value)

    def go(module: ModuleType, *arguments: str) -> Result:
        app = typer.Typer()
        app.command()(module.command)
        return CliRunner().invoke(app, list(arguments))

    return go


@pytest.fixture
def publish(store: ObjectStore, storage_root: str) -> Publish:
    """See `Publish`."""

    def write(
        kind: Kind,
        name: str,
        files: Mapping[str, bytes],
        inputs: Sequence[tuple[str, str]] = (),
        config: Mapping[str, Any] | None = None,
    ) -> str:
        uri = f"{storage_root}/{kind}/{name}/"
        entries = []
        for path, data in files.items():
            store.put_bytes(uri + path, data)
            digest = hashlib.sha256(data).hexdigest()
            entries.append(FileEntry(path=path, bytes=len(data), sha256=digest))
        refs = {
            key: InputRef(uri=ref, content=load_manifest(ref, store).content) for key, ref in inputs
        }
        manifest = Manifest(
            kind=kind, stage=kind, stage_version="1", address=name, uri=uri,
            files=tuple(entries), inputs=refs, config=dict(config or {}),
        )  # fmt: skip
        store.put_bytes(uri + MANIFEST_NAME, manifest.model_dump_json().encode())
        return uri + MANIFEST_NAME

    return write


@pytest.fixture
def runs(publish: Publish, store: ObjectStore) -> Runs:
    """(training, evaluation) of a good first run and of a bad one."""
    record = VideoRecord(uri=VIDEO, sha256=SHA256, split="train")
    again = record.model_copy(update={"uri": AGAIN, "status": "duplicate", "split": None})
    found = {"videos.jsonl": record_line(record), "quarantine.jsonl": record_line(again)}
    videos = publish("videos", "v", found, config={"seed": 7})
    base = publish("checkpoint", "b", {"model/w": b"base"})
    pairs = []
    for name, loss in (("good", 0.5), ("bad", 2.0)):
        lines = [json.dumps({"step": i, "loss": 3.0 - i / 20}) for i in range(1, 31)]
        files = {
            "model/w": name.encode(),
            "metrics.jsonl": "\n".join(lines).encode(),
            "settings.json": b'{"lr": 1}',
        }
        training = publish("training-run", name, files, [("checkpoint", base), ("data", videos)])
        models: Any = {}
        sets: Any = {}
        for role, ref, value in (("base", base, 1.0), ("candidate", training, loss)):
            digest = weights_digest(load_manifest(ref, store))
            models[role] = ModelRef(name=role, digest=digest, manifest=ref)
            sets[role] = tuple(
                ClipScore(video=f"v{i}", sha256=f"v{i}", clip=f"c{i}", values={"loss": value})
                for i in range(4)
            )
        evaluation = Evaluation(
            family="dit", metric="loss", better="lower", models=models, sets={"held-out": sets}
        )
        files = {"evaluation.json": evaluation.model_dump_json().encode()}
        pairs.append((training, publish("evaluation", name, files, [("training", training)])))
    return pairs


def test_promote_lineage_and_rollback(type_in: TypeIn, runs: Runs, storage_root: str) -> None:
    root = ("--storage-root", storage_root)
    good, bad = [("--training", t, "--evaluation", e) for t, e in runs]
    done = type_in(promote, "m", *good, *root)
    assert done.exit_code == 0 and "promoted; in production: m@1" in done.output
    refused = type_in(promote, "m", *bad, *root)
    assert refused.exit_code == 1 and "NOT PASSED" in refused.output
    forced = type_in(promote, "m", *bad, *root, "--force", "--reason", "a drill")
    assert forced.exit_code == 0 and "m@2" in forced.output
    back = type_in(rollback, "m", "--reason", "drill over", *root)
    assert "m@1 is in production (was m@2)" in back.output

    shown = type_in(lineage, "m@1", *root)
    assert f"{SHA256}  train       {VIDEO}" in shown.output and "seed = 7" in shown.output
    assert type_in(lineage, "m", *root).output == shown.output
    as_json = json.loads(type_in(lineage, "m@2", *root, "--json").output)
    assert [video["uri"] for video in as_json["videos"]] == [VIDEO]
    users = type_in(lineage, "--video", VIDEO, *root)
    assert [line.split()[0] for line in users.output.splitlines()] == ["m@1", "m@2"]
    unknown = type_in(lineage, "--video", f"{storage_root}/no.mp4", *root).output
    assert "No model version" in unknown and "ask with its sha256" in unknown


def test_every_name_of_a_content_finds_the_models_that_used_it(
    runs: Runs, type_in: TypeIn, store: ObjectStore, storage_root: str, tmp_path: Path
) -> None:
    root = ("--storage-root", storage_root)
    training, evaluation = runs[0]
    type_in(promote, "m", "--training", training, "--evaluation", evaluation, *root)
    later = f"{storage_root}/inbox/uploaded-later.mp4"
    store.put_bytes(later, CONTENT)
    (tmp_path / "own.mp4").write_bytes(CONTENT)
    for name in (VIDEO, AGAIN, SHA256, later, str(tmp_path / "own.mp4")):
        assert type_in(lineage, "--video", name, *root).output.startswith("m@1 "), name
    store.put_bytes(later, b"another content")
    assert "No model version" in type_in(lineage, "--video", later, *root).output


def test_mistakes_are_sentences(type_in: TypeIn, runs: Runs, storage_root: str) -> None:
    root = ("--storage-root", storage_root)
    cases = [
        (lineage, ("m@4", *root), r"no m@4 \(there are: none\)"),
        (lineage, root, "Give either a model version"),
        (lineage, ("m@x", *root), "names no version"),
        (rollback, ("m", "--reason", "r", *root), "nothing to roll back"),
        (promote, ("m", "--training", "x", "--evaluation", "y", "--force"), "needs --reason"),
        (report, ("/nowhere",), "no run at /nowhere"),
    ]
    for module, arguments, sentence in cases:
        result = type_in(module, *arguments)
        assert isinstance(result.exception, UserError)
        with pytest.raises(UserError, match=sentence):
            raise result.exception


def test_report_compares_runs_from_the_store(type_in: TypeIn, runs: Runs, tmp_path: Path) -> None:
    output = tmp_path / "sub" / "compare.html"
    done = type_in(report, runs[0][0], runs[1][0], "--output", str(output))
    assert done.exit_code == 0, done.output
    assert "falling" in done.output
    assert {path.suffix for path in output.parent.iterdir()} == {".html", ".csv", ".png", ".md"}
    text = output.read_text()
    assert "2 training runs" in text and "http" not in text.split("<body>")[1].split("<script")[0]
