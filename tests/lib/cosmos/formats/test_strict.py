"""A checkpoint that is not exactly the network's is refused by the key that differs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from components.lib.contract import UserError
from components.lib.cosmos.formats import tiny
from components.lib.cosmos.formats.exporting import export_model
from components.lib.cosmos.formats.importing import import_model

Weights = dict[str, torch.Tensor]
SKEWED = "net.blocks.block1.blocks.1.block.attn.to_k.0.weight"  # [128, 64]
SQUARE = "net.blocks.block2.blocks.0.block.attn.to_q.0.weight"  # [128, 128]


def removed(weights: Weights, key: str) -> None:
    del weights[key]


def renamed(weights: Weights, key: str) -> None:
    weights[key + "_"] = weights.pop(key)


def transposed(weights: Weights, key: str) -> None:
    weights[key] = weights[key].T.contiguous()


def transposed_view(weights: Weights, key: str) -> None:
    weights[key] = weights[key].T


Change = Callable[[Weights, str], None]


@pytest.mark.parametrize(
    ("change", "key", "told"),
    [
        (removed, SKEWED, "1 missing: {}"),
        (renamed, SKEWED, r"1 missing: {}; 1 unexpected: {}_"),
        (transposed, SKEWED, r"1 of another shape: {} has shape \[64, 128\], wanted \[128, 64\]"),
        (transposed_view, SKEWED, "{}' is stored as a transposed view"),
        (transposed_view, SQUARE, "{}' is stored as a transposed view"),
    ],
)
def test_model_pt(checkpoints: Path, tmp_path: Path, change: Change, key: str, told: str) -> None:
    source = tmp_path / "model"
    shutil.copytree(checkpoints / tiny.DIT_FOLDER, source)
    weights = torch.load(source / "model.pt", weights_only=True)
    change(weights, key)
    torch.save(weights, source / "model.pt")
    name = key.removeprefix("net.")
    pattern = told.replace("{}", name if "view" not in told else key)
    with pytest.raises(UserError, match=pattern.replace("net.", r"net\.")):
        import_model(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [removed, renamed, transposed])
@pytest.mark.parametrize(
    ("name", "key", "official"),
    [
        (
            tiny.DIT_FOLDER,
            "transformer_blocks.1.attn2.to_k.weight",
            "blocks.block1.blocks.1.block.attn.to_k.0.weight",
        ),
        (
            tiny.CV_FOLDER,
            "encoder.down_blocks.0.resnets.0.conv_shortcut.weight",
            "encoder.down.0.block.0.nin_shortcut.conv3d.weight",
        ),
    ],
)
def test_diffusers_folders(
    checkpoints: Path, tmp_path: Path, name: str, key: str, official: str, change: Change
) -> None:
    export_model(checkpoints / name, tmp_path / "theirs", "diffusers")
    path = tmp_path / "theirs" / "diffusion_pytorch_model.safetensors"
    weights = load_file(str(path))
    if change is transposed:
        weights[key] = weights[key].transpose(0, 1).contiguous()
    else:
        change(weights, key)
    save_file(weights, str(path))
    with pytest.raises(UserError, match=official.replace(".", r"\.")):
        import_model(tmp_path / "theirs", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [removed, renamed, transposed])
def test_tokenizer_archives(checkpoints: Path, tmp_path: Path, change: Change) -> None:
    key = "decoder.up.0.block.0.nin_shortcut.conv3d.weight"

    class Bag(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    bag = Bag()
    weights = dict(torch.jit.load(checkpoints / tiny.CV_FOLDER / "autoencoder.jit").state_dict())
    if change is transposed:
        weights[key] = weights[key].transpose(0, 1).contiguous()
    else:
        change(weights, key)
    for name, tensor in weights.items():
        *path, leaf = name.split(".")
        place: torch.nn.Module = bag
        for part in path:
            if part not in place._modules:
                place.add_module(part, torch.nn.Module())
            place = place.get_submodule(part)
        place.register_buffer(leaf, tensor)
    source = tmp_path / "tokenizer"
    shutil.copytree(checkpoints / tiny.CV_FOLDER, source)
    torch.jit.script(bag).save(str(source / "autoencoder.jit"))
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        import_model(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_network_is_not_taken_for_a_published_one(tmp_path: Path) -> None:
    torch.save({"net.some.weight": torch.zeros(3)}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="is none of the published networks"):
        import_model(tmp_path, tmp_path / "out")


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"net.x": Evil()}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="holds more than tensors"):
        import_model(tmp_path, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("size", [0, 3, 1000, 100_000])
def test_a_truncated_model_pt_is_one_sentence(checkpoints: Path, tmp_path: Path, size: int) -> None:
    data = (checkpoints / tiny.DIT_FOLDER / "model.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(data[:size])
    with pytest.raises(UserError, match=r"/model\.pt "):
        import_model(tmp_path, tmp_path / "out")


def test_a_truncated_archive_is_one_sentence(checkpoints: Path, tmp_path: Path) -> None:
    data = (checkpoints / tiny.CV_FOLDER / "autoencoder.jit").read_bytes()
    (tmp_path / "autoencoder.jit").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"autoencoder\.jit .*TorchScript"):
        import_model(tmp_path, tmp_path / "out")


def test_half_of_a_tokenizer_is_named(checkpoints: Path, tmp_path: Path) -> None:
    shutil.copy(checkpoints / tiny.CV_FOLDER / "encoder.jit", tmp_path)
    with pytest.raises(UserError, match=r"lacks decoder\.jit"):
        import_model(tmp_path, tmp_path / "out")


def test_encoder_and_decoder_together_are_the_whole(checkpoints: Path, tmp_path: Path) -> None:
    source = tmp_path / "pair"
    source.mkdir()
    for name in ("encoder.jit", "decoder.jit", "config.json", "mean_std.pt"):
        shutil.copy(checkpoints / tiny.CV_FOLDER / name, source)
    import_model(source, tmp_path / "a")
    import_model(checkpoints / tiny.CV_FOLDER, tmp_path / "b")
    a, b = (load_file(str(tmp_path / x / "model.safetensors")) for x in "ab")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_an_empty_folder_lists_what_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing.*model\.pt"):
        import_model(tmp_path, tmp_path / "out")
