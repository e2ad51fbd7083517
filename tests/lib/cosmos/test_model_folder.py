"""Canonical folders: whole or not there, strict, sharded without anyone noticing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from components.lib.contract import UserError
from components.lib.cosmos.dit.network import DIT_PRESETS, DiT
from components.lib.cosmos.model_folder import (
    check_keys,
    download_model,
    is_model_folder,
    load_dit,
    load_state_dict,
    load_tokenizer,
    read_model_config,
    read_specs,
    save_model_folder,
)
from components.lib.cosmos.tokenizer.config import TokenizerConfig
from components.lib.cosmos.tokenizer.network import CosmosTokenizer
from components.lib.manifest import FileEntry, Manifest
from components.lib.store import ObjectStore

DIT = DIT_PRESETS["tiny"].model_copy(update={"layers": 1})
TOKENIZER = TokenizerConfig(channels=8, window=17)


def weights(count: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"layer.{i}": torch.randn(16, 16, generator=generator) for i in range(count)}


def test_a_dit_comes_back_as_it_was(tmp_path: Path) -> None:
    model = DiT(DIT, seed=3).bfloat16()
    save_model_folder(tmp_path / "m", "dit", "mine", DIT, model.state_dict())
    loaded = load_dit(tmp_path / "m")
    assert loaded.config == DIT
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
        assert loaded.state_dict()[name].dtype == tensor.dtype
    assert load_dit(tmp_path / "m", dtype=torch.float32).affline_norm.weight.dtype == torch.float32


def test_a_tokenizer_keeps_its_statistics(tmp_path: Path) -> None:
    model = CosmosTokenizer(TOKENIZER)
    model.set_latent_statistics(torch.rand(16, 3), torch.rand(16, 3) + 0.5)
    state = {**model.state_dict(), **model.extra_state_tensors()}
    save_model_folder(tmp_path / "m", "tokenizer", "mine", TOKENIZER, state)
    loaded = load_tokenizer(tmp_path / "m", dtype=torch.bfloat16)
    for got, wanted in zip(loaded.latent_statistics, model.latent_statistics, strict=True):
        assert torch.equal(got, wanted)
        assert got.dtype == torch.float32
    save_model_folder(tmp_path / "plain", "tokenizer", "mine", TOKENIZER, model.state_dict())
    mean, std = load_tokenizer(tmp_path / "plain").latent_statistics
    assert torch.equal(mean, torch.zeros(16, 3))
    assert torch.equal(std, torch.ones(16, 3))


@pytest.mark.parametrize("shard_bytes", [1, 1024, 2048, 3000, 10**9])
def test_shards_hold_together(tmp_path: Path, shard_bytes: int) -> None:
    state = weights()
    save_model_folder(tmp_path, "dit", "x", {}, state, shard_bytes=shard_bytes)
    back = load_state_dict(tmp_path)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    files = sorted(tmp_path.glob("*.safetensors"))
    per_shard = max(1, shard_bytes // 1024)
    assert len(files) == -(-5 // per_shard)
    if len(files) > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == 5 * 1024
        for name, file in index["weight_map"].items():
            with safe_open(str(tmp_path / file), framework="pt") as source:
                assert name in source.keys()  # noqa: SIM118


def test_saving_again_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    save_model_folder(tmp_path, "dit", "first", {}, weights(), shard_bytes=1024)
    save_model_folder(tmp_path, "dit", "second", {}, {"only": torch.ones(2)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert set(read_specs(tmp_path)) == {"only"}


def test_a_save_that_breaks_off_leaves_no_model(tmp_path: Path) -> None:
    save_model_folder(tmp_path, "dit", "first", {}, weights())

    def broken() -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", torch.ones(400)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_model_folder(tmp_path, "dit", "second", {}, broken(), shard_bytes=16)
    assert not is_model_folder(tmp_path)
    with pytest.raises(UserError, match=r"holds no model: config\.json is missing"):
        read_model_config(tmp_path)


def test_views_of_one_storage_are_saved_apart(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    save_model_folder(tmp_path, "dit", "x", {}, {"a": whole[0], "b": whole[1], "t": whole.T})
    back = load_state_dict(tmp_path)
    assert torch.equal(back["b"], whole[1])
    assert torch.equal(back["t"], whole.T)
    assert (tmp_path / "model.safetensors").stat().st_size < 1000


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"remove": "affline_norm.weight"}, r"1 missing: affline_norm\.weight"),
        ({"add": "affline_norm.bias"}, r"1 unexpected: affline_norm\.bias"),
        (
            {"reshape": "x_embedder.proj.1.weight"},
            r"x_embedder\.proj\.1\.weight has shape \[68, 128\]",
        ),
    ],
)
def test_every_key_that_differs_is_named(tmp_path: Path, change: dict[str, str], told: str) -> None:
    state = dict(DiT(DIT, seed=None).state_dict())
    if name := change.get("remove"):
        del state[name]
    if name := change.get("add"):
        state[name] = torch.ones(2)
    if name := change.get("reshape"):
        state[name] = state[name].T.contiguous()
    save_model_folder(tmp_path, "dit", "x", DIT, state)
    with pytest.raises(UserError, match=told) as caught:
        load_dit(tmp_path)
    assert "nothing was loaded" in str(caught.value)


def test_a_long_list_of_keys_is_cut_but_counted() -> None:
    expected = {f"k{i:03}": (1,) for i in range(100)}
    with pytest.raises(UserError, match=r"100 missing: k000, .* and 60 more"):
        check_keys(expected, {}, "here")


def test_a_folder_of_another_family_is_refused(tmp_path: Path) -> None:
    save_model_folder(tmp_path, "vgg16", "vgg", {"channels": [1, 2, 3, 4, 5]}, weights())
    with pytest.raises(UserError, match="of family 'vgg16'; a 'dit' is needed here"):
        load_dit(tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is not the config of a canonical model folder"),
        ('{"family": "dit", "name": "x", "config": {"layers": 0}}', r"config\.layers: "),
        ('{"family": "dit", "name": "x", "config": {"depth": 1}}', r"config\.depth: "),
        ('{"format": "other/2", "family": "dit", "name": "x", "config": {}}', "format"),
    ],
)
def test_a_config_that_does_not_fit_names_the_field(tmp_path: Path, text: str, told: str) -> None:
    save_model_folder(tmp_path, "dit", "x", DIT, weights())
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=told):
        load_dit(tmp_path)


def test_missing_and_broken_weights_are_named(tmp_path: Path) -> None:
    save_model_folder(tmp_path, "dit", "x", DIT, weights(), shard_bytes=1024)
    victim = tmp_path / "model-00002-of-00005.safetensors"
    data = victim.read_bytes()
    victim.write_bytes(data[:100])
    with pytest.raises(UserError, match=r"model-00002-of-00005\.safetensors is not a readable"):
        load_dit(tmp_path)
    victim.unlink()
    with pytest.raises(UserError, match=r"lacks the weights model-00002-of-00005\.safetensors"):
        load_dit(tmp_path)


def entry(path: str, data: bytes = b"") -> FileEntry:
    import hashlib

    return FileEntry(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def manifest(uri: str, *files: FileEntry) -> Manifest:
    return Manifest(
        kind="checkpoint", stage="s", stage_version="1", address="a", uri=uri, files=files
    )


def test_a_model_is_downloaded_and_verified(
    store: ObjectStore, storage_root: str, tmp_path: Path
) -> None:
    model = DiT(DIT, seed=1)
    save_model_folder(tmp_path / "local", "dit", "x", DIT, model.state_dict(), shard_bytes=100_000)
    uri = f"{storage_root}/run/"
    files = []
    for path in (tmp_path / "local").iterdir():
        store.put_file(path, f"{uri}model/{path.name}")
        files.append(entry(f"model/{path.name}", path.read_bytes()))
    found = manifest(uri, *files, entry("metrics.jsonl", b"{}"))
    folder = download_model(found, store, tmp_path / "copy")
    assert {path.name for path in folder.iterdir()} == {
        path.name for path in (tmp_path / "local").iterdir()
    }
    assert torch.equal(load_dit(folder).affline_norm.weight, model.affline_norm.weight)
    store.put_bytes(f"{uri}model/config.json", b"{}")
    with pytest.raises(UserError, match=r"config\.json"):
        download_model(found, store, tmp_path / "again")


def test_manifests_without_a_model_or_with_unsafe_paths_are_refused(
    store: ObjectStore, storage_root: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="holds no files under 'model/'"):
        download_model(manifest(f"{storage_root}/x/", entry("videos.jsonl")), store, tmp_path)
    with pytest.raises(UserError, match="unsafe path"):
        download_model(manifest(f"{storage_root}/x/", entry("model/../a")), store, tmp_path / "m")
