"""Erasing a video: every copy of its content goes, nothing else does, and the users are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from components.lib.contract import UserError
from components.lib.erasure import erase, find_traces
from components.lib.lineage import LINEAGE_NAME, trace
from components.lib.manifest import MANIFEST_NAME, FileEntry, InputRef, Manifest, load_manifest
from components.lib.registry import models_root
from components.lib.store import ObjectStore
from components.lib.video.encode import write_mp4
from components.tar_sharding.config import TarShardingConfig
from components.tar_sharding.stage import run as shard
from components.video_discovery.config import VideoDiscoveryConfig
from components.video_discovery.stage import run as discover
from pipelines.commands import erase as command


class Used:
    """Two data sets, of one video each that the other lacks, and a model trained on the first."""

    def __init__(self, store: ObjectStore, root: str, progress: Any, folder: Path) -> None:
        self.store, self.root = store, root
        self.one, self.copy = f"{root}/inbox/a/one.mp4", f"{root}/inbox/a/one-again.mp4"
        self.two = f"{root}/inbox/b/two.mp4"
        for seed, names in enumerate(((self.one, self.copy), (self.two,))):
            picture = np.random.default_rng(seed).integers(0, 255, (32, 48, 3), dtype=np.uint8)
            frames = [np.roll(picture, 3 * step, axis=1) for step in range(8)]
            write_mp4(folder / "v.mp4", frames, 25)
            for name in names:
                store.put_file(folder / "v.mp4", name)
        self.first = self.data_set(f"{root}/inbox/a", progress)
        self.second = self.data_set(f"{root}/inbox/b", progress)
        self.judged = self.publish("evaluation", "evaluation", {"data": self.first}, {})
        lineage = trace([load_manifest(self.first, store)], store).model_dump_json().encode()
        uri = f"{models_root(root)}/m/versions/1/"
        store.put_bytes(uri + LINEAGE_NAME, lineage)

    def data_set(self, source: str, progress: Any) -> str:
        found = discover(
            VideoDiscoveryConfig(storage_root=self.root, source=source, workers=1),
            self.store, progress,
        )  # fmt: skip
        config = TarShardingConfig(storage_root=self.root, videos=found.manifest_uri, workers=1)
        return shard(config, self.store, progress).manifest_uri

    def publish(
        self, stage: str, kind: Any, inputs: dict[str, str], files: dict[str, bytes]
    ) -> str:
        uri = f"{self.root}/{stage}/{'e' * 8}/"
        refs = {name: InputRef(uri=ref, content="x") for name, ref in inputs.items()}
        entries: tuple[FileEntry, ...] = ()
        manifest = Manifest(
            kind=kind, stage=stage, stage_version="1", address="e", uri=uri, files=entries,
            inputs=refs,
        )  # fmt: skip
        self.store.put_bytes(uri + MANIFEST_NAME, manifest.model_dump_json().encode())
        return uri

    def objects(self, prefix: str) -> set[str]:
        return {info.uri for info in self.store.list(prefix)}


@pytest.fixture
def used(store: ObjectStore, storage_root: str, progress: Any, tmp_path: Path) -> Used:
    return Used(store, storage_root, progress, tmp_path)


def prefix_of(manifest_uri: str) -> str:
    return manifest_uri.removesuffix(MANIFEST_NAME)


def test_every_copy_goes_and_nothing_else(used: Used, store: ObjectStore) -> None:
    traces = find_traces(store, used.root, used.one)
    assert traces is not None
    assert traces.names == (used.copy, used.one)
    assert traces.data_sets == (prefix_of(used.first),)
    assert traces.versions == ("m@1",)
    assert traces.reports == (used.judged,)
    for name in (used.copy, traces.sha256):
        assert find_traces(store, used.root, name) == traces

    before = used.objects(used.root)
    gone = used.objects(prefix_of(used.first)) | {used.one, used.copy}
    assert erase(store, traces) == len(gone)
    assert used.objects(used.root) == before - gone
    assert load_manifest(used.second, store).kind == "tokenizer-dataset"


def test_who_used_it_can_be_asked_afterwards_by_any_name(used: Used, store: ObjectStore) -> None:
    traces = find_traces(store, used.root, used.one)
    assert traces is not None
    erase(store, traces)
    for name in (used.one, used.copy, traces.sha256):
        again = find_traces(store, used.root, name)
        assert again is not None
        assert again.versions == ("m@1",) and again.names == () and again.data_sets == ()


def test_another_content_under_the_same_name_is_left_alone(used: Used, store: ObjectStore) -> None:
    sha256 = find_traces(store, used.root, used.one).sha256  # type: ignore[union-attr]
    store.put_bytes(used.one, b"somebody's new video")
    traces = find_traces(store, used.root, sha256)
    assert traces is not None and traces.names == (used.copy,)
    erase(store, traces)
    assert store.get_bytes(used.one) == b"somebody's new video"


def test_the_command_deletes_only_when_told_to(
    used: Used, store: ObjectStore, store_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in store_env.items():
        if key.startswith("AWS_"):
            monkeypatch.setenv(key, value)
    app = typer.Typer()
    app.command()(command.command)
    root = ("--storage-root", used.root)
    before = used.objects(used.root)
    said = CliRunner().invoke(app, [used.one, *root]).output
    assert "model versions that used it: 1\n  m@1" in said and "Nothing was deleted" in said
    assert used.objects(used.root) == before
    done = CliRunner().invoke(app, [used.one, *root, "--yes"])
    assert done.exit_code == 0 and "deleted" in done.output
    assert not used.objects(used.one) and not used.objects(prefix_of(used.first))
    unknown = CliRunner().invoke(app, [f"{used.root}/never.mp4", *root])
    assert isinstance(unknown.exception, UserError)
    assert "no run under" in str(unknown.exception)
