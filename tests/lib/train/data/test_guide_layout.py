"""The guide's files train like the same samples in shards, from a folder and from a manifest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from components.lib.contract import UserError
from components.lib.manifest import MANIFEST_NAME, FileEntry, Manifest
from components.lib.shards.dataset import open_source
from components.lib.shards.guide import guide_parts
from components.lib.shards.latents import parse_latent
from components.lib.shards.tar import IndexedShard
from components.lib.store import ObjectStore


@pytest.fixture(scope="module")
def wide_prompts(prompt_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embeddings with the 512 rows that the guide's files have."""
    folder = tmp_path_factory.mktemp("wide")
    (folder / "prompts").mkdir()
    for path in (prompt_folder / "prompts").iterdir():
        stored = load_file(path)
        rows = torch.zeros(512, stored["embedding"].shape[1], dtype=torch.bfloat16)
        rows[: len(stored["embedding"])] = stored["embedding"]
        save_file(stored | {"embedding": rows}, folder / "prompts" / path.name)
    return folder


@pytest.fixture(scope="module")
def guide_folder(
    latent_folder: Path, wide_prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The samples of `latent_folder` as the guide's files in `train/` and `validation/`."""
    folder = tmp_path_factory.mktemp("guide")
    for split in ("train", "validation"):
        (folder / split).mkdir()
        number = 0
        for shard in sorted(latent_folder.glob(f"{split}-*.tar")):
            tar = IndexedShard(shard)
            for index in range(len(tar.samples)):
                latent, info, _ = parse_latent(tar.read(index)[1])
                embedding = load_file(
                    wide_prompts / "prompts" / f"{info.prompt_sha256}.safetensors"
                )
                for name, data in guide_parts(number, latent, embedding["embedding"], info).items():
                    (folder / split / name).write_bytes(data)
                number += 1
    return folder


@pytest.fixture
def guide_manifest(guide_folder: Path, store: ObjectStore, storage_root: str) -> str:
    """`guide_folder` in the store, as latent_encoding leaves it."""
    uri, entries = f"{storage_root}/latents/", []
    for path in sorted(guide_folder.rglob("*.*")):
        name = path.relative_to(guide_folder).as_posix()
        info = store.put_file(path, uri + name)
        entries.append(FileEntry(path=name, bytes=info.bytes, sha256=info.sha256 or ""))
    entries.append(FileEntry(path="index/train-000000.jsonl", bytes=0, sha256=""))
    manifest = Manifest(
        kind="latent-dataset",
        stage="latent_encoding",
        stage_version="1",
        address="0",
        uri=uri,
        files=tuple(entries),
    )
    store.put_bytes(uri + MANIFEST_NAME, manifest.model_dump_json().encode())
    return uri + MANIFEST_NAME


def test_both_layouts_give_the_same_training(
    diffusion_arguments: list[str],
    wide_prompts: Path,
    guide_folder: Path,
    guide_manifest: str,
    store_env: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    trainings: Callable[..., None],
    metrics: Callable[..., list[dict[str, float]]],
    tmp_path: Path,
) -> None:
    for name, value in store_env.items():
        monkeypatch.setenv(name, value)
    common = [*diffusion_arguments, "data.shuffle=false", f"data.prompts={wide_prompts}"]
    sources = {
        "shards": [],
        "folder": [f"data.path={guide_folder}", "data.prompts="],
        "manifest": [f"data.path={guide_manifest}", "data.prompts="],
    }
    trainings(
        tmp_path,
        [
            {"world": 1, "folder": str(tmp_path / name), "arguments": common + extra}
            for name, extra in sources.items()
        ],
    )
    for name in ("folder", "manifest"):
        for split in ("train", "validation"):
            expected = metrics(tmp_path / "shards", split)
            found = metrics(tmp_path / name, split)
            assert [step["loss"] for step in found] == [step["loss"] for step in expected]
            assert len(found) > 1


def test_the_cache_of_small_files_stays_within_its_bound(
    guide_manifest: str, store: ObjectStore, tmp_path: Path
) -> None:
    source, _ = open_source(guide_manifest, store, cache_dir=tmp_path, max_bytes=100_000)
    assert (source.counts("train"), source.counts("validation")) == ([11], [3])
    for _ in range(2):
        for index in range(11):
            name, parts = source.read("train", 0, index)
            assert name.endswith(f"/train/{index}")
            assert len(parts["t5_text_embeddings.pth"]) > 512 * 32 * 2
    held = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert held < 200_000
    assert len(list(tmp_path.glob("*.lock"))) <= 64


def test_a_file_that_is_missing_or_changed_is_named(
    guide_manifest: str, guide_folder: Path, store: ObjectStore, tmp_path: Path
) -> None:
    uri = guide_manifest.removesuffix(MANIFEST_NAME)
    store.put_bytes(f"{uri}train/4.video_latent.pth", b"other")
    source, _ = open_source(guide_manifest, store, cache_dir=tmp_path / "c", max_bytes=10**6)
    with pytest.raises(UserError, match=r"4\.video_latent\.pth"):
        source.read("train", 0, 4)
    for path in guide_folder.glob("train/[0-3].*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "2.info.json").unlink()
    with pytest.raises(UserError, match=r"2\.info\.json"):
        open_source(str(tmp_path), None, cache_dir=tmp_path / "c", max_bytes=1)
