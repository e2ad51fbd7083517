"""The tiny set: official layout, reproducible, and fit for training."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from components.lib.cosmos.diffusion.text import TextEncoder
from components.lib.cosmos.formats import tiny, vgg
from components.lib.cosmos.formats.importing import import_model
from components.lib.cosmos.formats.official import load_pt
from components.lib.cosmos.model_folder import load_tokenizer


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_files_are_those_of_the_official_layouts(checkpoints: Path) -> None:
    names = {path for path in digests(checkpoints) if not path.startswith("t5-11b/")}
    assert names == {
        "complete.json",
        "Cosmos-1.0-Diffusion-7B-Text2World/config.json",
        "Cosmos-1.0-Diffusion-7B-Text2World/model.pt",
        "vgg16/config.json",
        "vgg16/model.safetensors",
        *(
            f"Cosmos-1.0-Tokenizer-{name}/{file}"
            for name in ("CV8x8x8", "DV8x16x16")
            for file in ("encoder.jit", "decoder.jit", "autoencoder.jit", "config.json")
        ),
        "Cosmos-1.0-Tokenizer-CV8x8x8/mean_std.pt",
        "Cosmos-1.0-Tokenizer-CV8x8x8/image_mean_std.pt",
    }
    weights = load_pt(checkpoints / tiny.DIT_FOLDER / "model.pt")
    outside = {name for name in weights if not name.startswith("net.")}
    assert outside == {"logvar.0.freqs", "logvar.0.phases", "logvar.1.weight"}
    assert "net.pos_embedder.seq" in weights
    assert all(tensor.dtype == torch.bfloat16 for tensor in weights.values())


@pytest.mark.parametrize("role", ["dit", "vgg"])
def test_equal_seeds_give_equal_files(tmp_path: Path, role: str) -> None:
    write = tiny.write_dit if role == "dit" else tiny.write_vgg
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write(tmp_path / name, seed)
    assert digests(tmp_path / "a") == digests(tmp_path / "b") != digests(tmp_path / "c")


def test_normalised_latents_are_about_standard_normal(checkpoints: Path, tmp_path: Path) -> None:
    import_model(checkpoints / tiny.CV_FOLDER, tmp_path / "cv")
    tokenizer = load_tokenizer(tmp_path / "cv", dtype=torch.float32)
    with torch.no_grad():
        latent = tokenizer.normalise(tokenizer.encode(tiny.smooth_video(121, 64, seed=9)))
    assert latent.mean().abs() < 0.2
    assert 0.6 < latent.std() < 1.6
    # and not because one channel makes up for another
    assert (latent.std(dim=(0, 2, 3, 4)) > 0.3).all()


def test_discrete_codes_are_many(checkpoints: Path, tmp_path: Path) -> None:
    import_model(checkpoints / tiny.DV_FOLDER, tmp_path / "dv")
    tokenizer = load_tokenizer(tmp_path / "dv", dtype=torch.float32)
    with torch.no_grad():
        indices = tokenizer.encode_indices(tiny.smooth_video(49, 64, seed=9))
    assert indices.unique().numel() > indices.numel() / 3


@pytest.mark.parametrize("name", [tiny.CV_FOLDER, tiny.DV_FOLDER])
def test_a_fresh_tokenizer_learns(checkpoints: Path, tmp_path: Path, name: str) -> None:
    import_model(checkpoints / name, tmp_path / "m")
    tokenizer = load_tokenizer(tmp_path / "m", dtype=torch.float32).train()
    video = tiny.smooth_video(9, 32, seed=4, clips=1)
    optimiser = torch.optim.AdamW(tokenizer.parameters(), 1e-3)
    losses = []
    for _ in range(25):
        loss = (tokenizer(video) - video).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] < 3 * video.abs().mean()
    assert sum(losses[-3:]) < 0.75 * sum(losses[:3])


def test_prompts_split_into_known_pieces(checkpoints: Path) -> None:
    encoder = TextEncoder(checkpoints / tiny.T5_FOLDER)
    assert encoder.dim == 64
    tokens = encoder.tokenize(["A video of sks teal robot.", "Ein völlig anderes Wort"])
    unknown = encoder.tokenizer.unk_token_id
    assert unknown not in tokens[0]
    assert len(tokens[0]) < 20
    assert tokens[0][-1] == tokens[1][-1] == encoder.tokenizer.eos_token_id


def test_vgg_names_and_shapes_are_torchvisions() -> None:
    shapes = vgg.vgg_shapes(vgg.VGG_CHANNELS)
    assert len(shapes) == 26
    assert shapes["features.0.weight"] == (64, 3, 3, 3)
    assert shapes["features.10.weight"] == (256, 128, 3, 3)
    assert shapes["features.28.bias"] == (512,)
    # VGG16 has 14,714,688 parameters in its convolutions.
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 14_714_688


def test_a_full_vgg_file_with_a_classifier_is_taken(tmp_path: Path) -> None:
    weights = tiny.initial_vgg(tiny.TINY_VGG_CHANNELS, 0)
    torch.save({**weights, "classifier.0.weight": torch.zeros(2, 2)}, tmp_path / "vgg16.pth")
    report = import_model(tmp_path, tmp_path / "out", role="vgg16")
    assert (report.family, report.tensors) == ("vgg16", 26)
