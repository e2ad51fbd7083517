"""A published T5 folder (fp32, with decoder, torch files) becomes the encoder alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from components.lib.contract import UserError
from components.lib.cosmos.diffusion.text import TextEncoder
from components.lib.cosmos.formats import tiny
from components.lib.cosmos.formats.importing import import_model


@pytest.fixture
def published(checkpoints: Path, tmp_path: Path) -> Path:
    """The layout of google-t5: pytorch_model.bin with encoder, decoder and head."""
    folder = tmp_path / "t5"
    shutil.copytree(checkpoints / tiny.T5_FOLDER, folder)
    weights = load_file(str(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    weights["encoder.embed_tokens.weight"] = weights["shared.weight"]
    weights["decoder.final_layer_norm.weight"] = torch.ones(64)
    weights["lm_head.weight"] = torch.ones(260, 64)
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


def test_the_encoder_alone_is_kept_and_gives_the_same(
    published: Path, checkpoints: Path, tmp_path: Path
) -> None:
    report = import_model(published, tmp_path / "out", role="t5")
    assert report.family == "t5"
    kept = load_file(str(tmp_path / "out" / "model.safetensors"))
    assert not any(name.startswith(("decoder.", "lm_head.")) for name in kept)
    assert all(tensor.dtype == torch.bfloat16 for tensor in kept.values())
    assert not (tmp_path / "out" / "pytorch_model.bin").exists()
    prompts = ["A video of sks teal robot.", "a car"]
    ours, lengths = TextEncoder(tmp_path / "out").encode(prompts)
    theirs, _ = TextEncoder(checkpoints / tiny.T5_FOLDER).encode(prompts)
    assert torch.equal(ours, theirs)
    assert (ours[0, int(lengths[0]) :] == 0).all()


def test_parts_listed_in_an_index_are_all_read(published: Path, tmp_path: Path) -> None:
    weights = torch.load(published / "pytorch_model.bin", weights_only=True)
    (published / "pytorch_model.bin").unlink()
    names = sorted(weights)
    parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}  # fmt: skip # noqa: E501
    for part, keys in parts.items():
        torch.save({key: weights[key] for key in keys}, published / part)
    places = {key: part for part, keys in parts.items() for key in keys}
    index = published / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    import_model(published, tmp_path / "out", role="t5", text_dtype="float32")
    kept = load_file(str(tmp_path / "out" / "model.safetensors"))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in kept.items())
    (published / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(UserError, match=r"lacks the weights pytorch_model-00002-of-00002\.bin"):
        import_model(published, tmp_path / "again", role="t5")


@pytest.mark.parametrize("change", ["remove", "rename", "reshape"])
def test_a_key_that_differs_is_named(published: Path, tmp_path: Path, change: str) -> None:
    weights = torch.load(published / "pytorch_model.bin", weights_only=True)
    key = "encoder.block.1.layer.0.SelfAttention.q.weight"
    tensor = weights.pop(key)
    if change == "rename":
        weights[key + "s"] = tensor
    if change == "reshape":
        weights[key] = tensor[:-1]
    torch.save(weights, published / "pytorch_model.bin")
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        import_model(published, tmp_path / "out", role="t5")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_tokenizer_is_refused(published: Path, tmp_path: Path) -> None:
    (published / "tokenizer.json").unlink()
    (published / "spiece.model").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer: tokenizer\.json"):
        import_model(published, tmp_path / "out", role="t5")
