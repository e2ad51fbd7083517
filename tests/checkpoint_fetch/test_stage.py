"""The stage on a local folder and on an object-store prefix, with real tiny checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from components.checkpoint_fetch.config import CONFIG
from components.checkpoint_fetch.stage import run
from components.lib.contract import UserError
from components.lib.cosmos.formats import tiny
from components.lib.cosmos.formats.official import load_pt
from components.lib.cosmos.model_folder import download_model, load_dit, load_tokenizer
from components.lib.manifest import MANIFEST_NAME, load_manifest
from components.lib.registry import Registry, models_root
from components.lib.store import ObjectStore
from tests.conftest import SilentProgress


def fetch(
    source: str, role: str, root: str, store: ObjectStore, progress: SilentProgress, **more: object
) -> Any:
    config = CONFIG.model_validate({"storage_root": root, "source": source, "role": role, **more})
    return run(config, store, progress)


def test_a_dit_from_a_folder_becomes_a_model_that_loads(
    checkpoints: Path,
    store: ObjectStore,
    storage_root: str,
    progress: SilentProgress,
    tmp_path: Path,
) -> None:
    folder = checkpoints / tiny.DIT_FOLDER
    result = fetch(f"file://{folder}", "dit", storage_root, store, progress)
    manifest = load_manifest(result.manifest_uri, store)
    assert manifest.summary["family"] == "dit"
    assert manifest.summary["source"] == f"file://{folder}"
    assert manifest.summary["format"] == "model.pt"
    assert {entry.path for entry in manifest.files} == {
        "model/config.json",
        "model/model.safetensors",
    }
    model = load_dit(download_model(manifest, store, tmp_path / "model"))
    official = load_pt(folder / "model.pt")
    for name, tensor in model.state_dict().items():
        if name != "pos_embedder.seq":
            assert torch.equal(tensor, official[f"net.{name}"]), name


def test_a_second_run_reuses_the_first_and_moves_nothing(
    checkpoints: Path, store: ObjectStore, storage_root: str, progress: SilentProgress
) -> None:
    source = f"file://{checkpoints / tiny.VGG_FOLDER}"
    first = fetch(source, "vgg16", storage_root, store, progress)
    before = {info.uri: info.etag for info in store.list(storage_root + "/")}
    second = fetch(source, "vgg16", storage_root, store, progress)
    assert (first.reused, second.reused) == (False, True)
    assert second.manifest == first.manifest
    assert {info.uri: info.etag for info in store.list(storage_root + "/")} == before


def test_changed_weights_get_a_new_address(
    tmp_path: Path, store: ObjectStore, storage_root: str, progress: SilentProgress
) -> None:
    addresses = set()
    for seed in (0, 1):
        tiny.write_vgg(tmp_path / f"vgg-{seed}", seed)
        (tmp_path / f"vgg-{seed}").rename(tmp_path / "vgg")
        result = fetch(f"file://{tmp_path}/vgg", "vgg16", storage_root, store, progress)
        addresses.add(result.manifest.address)
        (tmp_path / "vgg").rename(tmp_path / f"done-{seed}")
    assert len(addresses) == 2


def test_a_tokenizer_from_an_object_store_prefix_keeps_its_statistics(
    checkpoints: Path,
    store: ObjectStore,
    storage_root: str,
    progress: SilentProgress,
    tmp_path: Path,
) -> None:
    folder = checkpoints / tiny.CV_FOLDER
    prefix = f"{storage_root}/incoming/tokenizer"
    store.put_files([(path, f"{prefix}/{path.name}") for path in folder.iterdir()])
    result = fetch(prefix, "tokenizer", storage_root, store, progress)
    tokenizer = load_tokenizer(download_model(result.manifest, store, tmp_path / "model"))
    mean, std = load_pt(folder / "mean_std.pt")
    assert torch.equal(tokenizer.latent_statistics[0].flatten(), mean)
    assert torch.equal(tokenizer.latent_statistics[1].flatten(), std)
    assert any("TorchScript" in line and "code" in line for line in progress.lines)


def test_a_text_encoder_is_stored_as_transformers_folder_in_bf16(
    checkpoints: Path,
    store: ObjectStore,
    storage_root: str,
    progress: SilentProgress,
    tmp_path: Path,
) -> None:
    from components.lib.cosmos.diffusion.text import TextEncoder

    source = f"file://{checkpoints / tiny.T5_FOLDER}"
    result = fetch(source, "t5", storage_root, store, progress)
    folder = download_model(result.manifest, store, tmp_path / "model")
    ours, _ = TextEncoder(folder).encode(["A video of sks teal robot."])
    original, _ = TextEncoder(checkpoints / tiny.T5_FOLDER).encode(["A video of sks teal robot."])
    assert torch.equal(ours, original)
    assert result.manifest.summary["family"] == "t5"


@pytest.mark.parametrize(
    ("source", "role", "expected"),
    [
        ("file:///nowhere/at/all", "dit", "There is no folder /nowhere/at/all"),
        ("ftp://host/x", "dit", "is no source of a checkpoint"),
        ("hf://justaname", "dit", "is not of the form hf://owner/name"),
        ("hf://datasets/nvidia/Cosmos-NeMo-Assets", "dit", "is a data set"),
    ],
)
def test_a_wrong_source_is_named(
    source: str,
    role: str,
    expected: str,
    store: ObjectStore,
    storage_root: str,
    progress: SilentProgress,
) -> None:
    with pytest.raises(UserError, match=expected):
        fetch(source, role, storage_root, store, progress)


def test_the_wrong_role_says_what_is_needed_and_what_is_there(
    checkpoints: Path, store: ObjectStore, storage_root: str, progress: SilentProgress
) -> None:
    with pytest.raises(UserError, match=r"role 'dit': it needs model\.pt .*autoencoder\.jit"):
        fetch(f"file://{checkpoints / tiny.CV_FOLDER}", "dit", storage_root, store, progress)
    assert not list(store.list(storage_root + "/checkpoint_fetch/"))


def test_a_model_in_production_takes_the_source_s_place(
    checkpoints: Path, store: ObjectStore, storage_root: str, progress: SilentProgress
) -> None:
    source = f"file://{checkpoints / tiny.VGG_FOLDER}"
    before = fetch(source, "vgg16", storage_root, store, progress, production_of="m")
    assert before.manifest.stage == "checkpoint_fetch"

    registry = Registry(store, models_root(storage_root), "m")
    number = registry.claim("digest")
    uri = registry.version_uri(number)
    version = before.manifest.model_copy(update={"uri": uri, "stage": "promotion"})
    store.put_bytes(uri + MANIFEST_NAME, version.model_dump_json().encode())
    unmoved = fetch(source, "vgg16", storage_root, store, progress, production_of="m")
    assert unmoved.manifest == before.manifest  # a version that is not in production

    registry.move(None, number, kind="promotion", digest="digest")
    after = fetch(source, "vgg16", storage_root, store, progress, production_of="m")
    assert (after.manifest, after.manifest_uri) == (version, uri + MANIFEST_NAME)
    assert after.reused
    other = fetch(source, "vgg16", storage_root, store, progress)
    assert other.manifest == before.manifest
