"""The stage and the downloader against a hub on loopback; huggingface_hub is the oracle."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from components.checkpoint_fetch.config import CONFIG
from components.checkpoint_fetch.hub import Hub
from components.checkpoint_fetch.sources import SourceFile
from components.checkpoint_fetch.stage import run
from components.lib.contract import UserError
from components.lib.cosmos.formats import tiny
from components.lib.cosmos.model_folder import download_model, load_state_dict
from components.lib.store import ObjectStore
from tests.conftest import SilentProgress
from tests.servers.hub import FakeHub

REPO = "nvidia/Cosmos-1.0-Tokenizer-CV8x8x8"
VGG = "timm/vgg16.tv_in1k"


def fetch(
    store: ObjectStore, root: str, progress: SilentProgress, source: str, role: str = "vgg16"
) -> Any:
    config = CONFIG.model_validate({"storage_root": root, "source": source, "role": role})
    return run(config, store, progress)


@pytest.fixture
def vgg(hub: FakeHub, checkpoints: Path, hub_env: dict[str, str]) -> str:
    """A repository with VGG16 weights and files that nobody needs; returns the commit."""
    files = {p.name: p.read_bytes() for p in (checkpoints / tiny.VGG_FOLDER).iterdir()}
    return str(hub.repo(VGG, {**files, "README.md": b"# hi", "extra/big.onnx": b"x" * 100_000}))


def test_a_branch_is_pinned_and_only_needed_files_move(
    hub: FakeHub,
    vgg: str,
    store: ObjectStore,
    storage_root: str,
    progress: SilentProgress,
    tmp_path: Path,
) -> None:
    result = fetch(store, storage_root, progress, f"hf://{VGG}")
    summary = result.manifest.summary
    assert (summary["revision"], summary["source"]) == (vgg, f"hf://{VGG}@{vgg}")
    asked = {path.rsplit("/", 1)[1] for method, path in hub.requests if "/resolve/" in path}
    assert asked == {"model.safetensors", "config.json"}
    files = hub.repos[VGG].commits[vgg]
    needed = sum(len(files[name]) for name in asked)
    assert hub.served == result.metrics["bytes_fetched"] == needed
    weights = load_state_dict(download_model(result.manifest, store, tmp_path / "model"))
    assert len(weights) == 26


def test_a_second_run_moves_no_bytes_and_a_pinned_one_asks_nothing(
    hub: FakeHub, vgg: str, store: ObjectStore, storage_root: str, progress: SilentProgress
) -> None:
    first = fetch(store, storage_root, progress, f"hf://{VGG}@main")
    hub.forget()
    second = fetch(store, storage_root, progress, f"hf://{VGG}")
    assert second.reused
    assert second.manifest == first.manifest
    assert hub.served == 0
    assert [path for _, path in hub.requests] == [f"/api/models/{VGG}/revision/main"]
    hub.forget()
    third = fetch(store, storage_root, progress, f"hf://{VGG}@{vgg}")
    assert third.reused
    assert hub.requests == []


def test_a_branch_that_moved_is_fetched_again(
    hub: FakeHub,
    vgg: str,
    store: ObjectStore,
    storage_root: str,
    progress: SilentProgress,
    tmp_path: Path,
) -> None:
    first = fetch(store, storage_root, progress, f"hf://{VGG}")
    tiny.write_vgg(tmp_path / "other", seed=5)
    moved = hub.repos[VGG].commit({p.name: p.read_bytes() for p in (tmp_path / "other").iterdir()})
    second = fetch(store, storage_root, progress, f"hf://{VGG}")
    assert second.manifest.summary["revision"] == moved
    assert second.manifest.content != first.manifest.content


def test_the_cache_is_the_one_that_huggingface_tools_share(
    hub: FakeHub,
    vgg: str,
    store: ObjectStore,
    storage_root: str,
    progress: SilentProgress,
    hub_env: dict[str, str],
) -> None:
    from huggingface_hub import hf_hub_download

    fetch(store, f"{storage_root}/a", progress, f"hf://{VGG}")
    cache = Path(hub_env["HF_HOME"]) / "hub"
    for revision in ("main", vgg):
        found = hf_hub_download(
            VGG, "model.safetensors", revision=revision, cache_dir=cache, local_files_only=True
        )
        assert Path(found).read_bytes() == hub.repos[VGG].commits[vgg]["model.safetensors"]
    hub.forget()
    again = fetch(store, f"{storage_root}/b", progress, f"hf://{VGG}@{vgg}")
    assert (hub.served, again.metrics["bytes_fetched"], again.reused) == (0, 0, False)


def test_what_huggingface_tools_fetched_is_used(
    hub: FakeHub,
    vgg: str,
    store: ObjectStore,
    storage_root: str,
    progress: SilentProgress,
    hub_env: dict[str, str],
) -> None:
    from huggingface_hub import hf_hub_download

    for name in ("model.safetensors", "config.json"):
        hf_hub_download(
            VGG,
            name,
            cache_dir=Path(hub_env["HF_HOME"]) / "hub",
            endpoint=hub.url,
            token=False,
        )
    hub.forget()
    result = fetch(store, storage_root, progress, f"hf://{VGG}")
    assert (hub.served, result.metrics["bytes_fetched"]) == (0, 0)


def test_a_spoiled_cache_is_noticed_and_mended(
    hub: FakeHub,
    vgg: str,
    store: ObjectStore,
    storage_root: str,
    progress: SilentProgress,
    hub_env: dict[str, str],
) -> None:
    fetch(store, f"{storage_root}/a", progress, f"hf://{VGG}")
    data = hub.repos[VGG].commits[vgg]["model.safetensors"]
    blobs = Path(hub_env["HF_HOME"]) / "hub" / "models--timm--vgg16.tv_in1k" / "blobs"
    blob = blobs / hashlib.sha256(data).hexdigest()
    blob.write_bytes(data[:-1] + b"?")
    fetch(store, f"{storage_root}/b", progress, f"hf://{VGG}")
    assert blob.read_bytes() == data


def test_a_gated_tokenizer_with_a_token(
    hub: FakeHub,
    hub_env: dict[str, str],
    checkpoints: Path,
    store: ObjectStore,
    storage_root: str,
    progress: SilentProgress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.folder(REPO, checkpoints / tiny.CV_FOLDER, gated=True)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    result = fetch(store, storage_root, progress, f"hf://{REPO}", "tokenizer")
    assert result.manifest.summary["name"] == "tiny-cv"
    names = {file["path"] for file in result.manifest.summary["files"]}
    assert names == {"autoencoder.jit", "mean_std.pt", "config.json"}
    assert "hf_good" not in result.manifest.model_dump_json() + "".join(progress.lines)


@pytest.mark.parametrize(
    ("token", "source", "told"),
    [
        (
            "",
            f"hf://{REPO}",
            r"Cosmos-1\.0-Tokenizer-CV8x8x8 is gated and HF_TOKEN is not set \(401\)",
        ),
        (
            "hf_no_access",
            f"hf://{REPO}",
            r"the account of HF_TOKEN has no access \(403\)\. Accept the",
        ),
        (
            "hf_wrong",
            f"hf://{REPO}",
            r"does not accept the token in HF_TOKEN for nvidia/.* \(401\)",
        ),
        ("", "hf://nvidia/nothing", r"nvidia/nothing was not found, or it needs a login"),
        ("hf_good", "hf://nvidia/nothing", r"no repository nvidia/nothing, .*\(404\)"),
        ("hf_good", f"hf://{REPO}@v9", r"has no revision 'v9' \(404\)"),
        ("hf_good", f"hf://{REPO}@{'0' * 40}", r"has no revision '0000"),
    ],
)
def test_refusals_name_the_repository_and_what_to_do(
    hub: FakeHub,
    hub_env: dict[str, str],
    store: ObjectStore,
    storage_root: str,
    progress: SilentProgress,
    monkeypatch: pytest.MonkeyPatch,
    token: str,
    source: str,
    told: str,
) -> None:
    hub.repo(REPO, {"autoencoder.jit": b"x"}, gated=True)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=told) as caught:
        fetch(store, storage_root, progress, source, "tokenizer")
    if "gated" in str(caught.value):
        assert "ccept the NVIDIA Open Model License at" in str(caught.value)
        repo = source.removeprefix("hf://").partition("@")[0]
        assert f"https://huggingface.co/{repo}" in str(caught.value)
    assert not list(store.list(f"{storage_root}/"))


def test_a_hub_that_is_not_there(
    store: ObjectStore,
    storage_root: str,
    progress: SilentProgress,
    hub_env: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"The connection to http://127\.0\.0\.1:9 .* failed"):
        fetch(store, storage_root, progress, f"hf://{VGG}")


@pytest.fixture
def big(hub: FakeHub, hub_env: dict[str, str]) -> tuple[str, SourceFile, bytes]:
    """A repository with one file of 3 MiB; returns commit, file and content."""
    data = random.Random(0).randbytes(3 * 1024 * 1024 + 17)
    commit = hub.repo("owner/big", {"model.pt": data})
    digest = hashlib.sha256(data).hexdigest()
    return commit, SourceFile(path="model.pt", bytes=len(data), digest=f"sha256:{digest}"), data


def download(big: tuple[str, SourceFile, bytes], part_bytes: int = 256 * 1024) -> tuple[Path, int]:
    commit, file, _ = big
    seen: list[int] = []
    local, moved = Hub().fetch(
        "owner/big", commit, [file], seen.append, workers=4, part_bytes=part_bytes, wait_s=0.01
    )
    return local["model.pt"], moved


@pytest.mark.parametrize(
    "faults",
    [
        {},
        {"cut_after": 100_000},
        {"busy": 5},
        {"expired": 1},
        {"ignore_ranges": True},
        {"cut_after": 60_000, "busy": 3},
    ],
    ids=str,
)
def test_faults_on_the_way_change_nothing(
    hub: FakeHub, big: tuple[str, SourceFile, bytes], faults: dict[str, Any]
) -> None:
    for name, value in faults.items():
        setattr(hub.faults, name, value)
    path, moved = download(big)
    assert path.read_bytes() == big[2]
    assert moved == len(big[2])
    left = [p.name for p in path.resolve().parent.iterdir() if not p.name.endswith("-lock")]
    assert left == [path.resolve().name]


def test_a_wrong_digest_is_thrown_away_and_named(
    hub: FakeHub, big: tuple[str, SourceFile, bytes]
) -> None:
    hub.faults.corrupt = True
    with pytest.raises(UserError, match=r"model\.pt of owner/big .* did not arrive as published"):
        download(big)
    blobs = Path(os.environ["HF_HOME"]) / "hub" / "models--owner--big" / "blobs"
    assert [p.name for p in blobs.iterdir() if not p.name.endswith("-lock")] == []
    hub.faults.corrupt = False
    assert download(big)[0].read_bytes() == big[2]


def test_a_link_that_stays_dead_is_one_sentence(
    hub: FakeHub, big: tuple[str, SourceFile, bytes]
) -> None:
    hub.faults.busy = 10_000
    with pytest.raises(UserError, match="Run again to go on where it stopped"):
        download(big)


CHILD = """
import sys
from components.checkpoint_fetch.hub import Hub
from components.checkpoint_fetch.sources import SourceFile
commit, size, digest = sys.argv[1:]
file = SourceFile(path="model.pt", bytes=int(size), digest=digest)
print("ready", flush=True)
Hub().fetch("owner/big", commit, [file], lambda n: None, workers=3, part_bytes=131072)
"""


def test_a_killed_download_goes_on_where_it_was(
    hub: FakeHub, hub_env: dict[str, str], big: tuple[str, SourceFile, bytes]
) -> None:
    commit, file, data = big
    hub.faults.seconds_per_block = 0.02
    command = [sys.executable, "-c", CHILD, commit, str(file.bytes), file.digest]
    draws, kills = random.Random(1), 0
    for _ in range(3):
        child = subprocess.Popen(command, env={**os.environ, **hub_env}, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(draws.uniform(0.3, 0.7))
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
        child.stdout.close()
    hub.faults.seconds_per_block = 0.0
    assert kills >= 2
    served_before = hub.served
    path, _ = download(big, part_bytes=131072)
    assert path.read_bytes() == data
    assert served_before > 0
    # What each killed process had half done is at most one part per worker.
    assert hub.served <= len(data) + kills * 3 * 131072 + 131072
