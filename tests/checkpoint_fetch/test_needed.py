"""Which files are taken from listings like those of the published repositories."""

from __future__ import annotations

import pytest

from components.checkpoint_fetch.needed import needed_files
from components.checkpoint_fetch.sources import parse_source
from components.lib.contract import UserError
from components.lib.cosmos.families import Variant

DIT = [
    "README.md",
    "LICENSE",
    "config.json",
    "model.pt",
    "nemo/common.pt",
    "nemo/metadata.json",
    "nemo/module.decoder.layers.mlp.linear_fc1.weight/.zarray",
    "nemo/module.decoder.layers.mlp.linear_fc1.weight/0.0.0",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
]
TOKENIZER = [
    "README.md",
    "autoencoder.jit",
    "encoder.jit",
    "decoder.jit",
    "config.json",
    "mean_std.pt",
    "image_mean_std.pt",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
]
T5 = [
    "README.md",
    "config.json",
    "pytorch_model.bin",
    "spiece.model",
    "tokenizer.json",
    "tf_model.h5",
]


@pytest.mark.parametrize(
    ("listing", "role", "variant", "wanted"),
    [
        (DIT, "dit", "auto", ["config.json", "model.pt"]),
        (DIT, "dit", "nemo", ["config.json", *DIT[4:8]]),
        ([p for p in DIT if p != "model.pt"], "dit", "auto", ["config.json", *DIT[4:8]]),
        (DIT, "dit", "diffusers", ["config.json", *DIT[8:10]]),
        (TOKENIZER, "tokenizer", "auto", ["autoencoder.jit", "config.json", "mean_std.pt"]),
        (
            TOKENIZER[2:],
            "tokenizer",
            "jit",
            ["config.json", "decoder.jit", "encoder.jit", "mean_std.pt"],
        ),
        (T5, "t5", "auto", ["config.json", "pytorch_model.bin", "spiece.model", "tokenizer.json"]),
        (
            ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
             "model.safetensors.index.json", "x/model.safetensors"],
            "dit",
            "auto",
            ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
             "model.safetensors.index.json"],
        ),
        (["model.safetensors", "config.json", "x.onnx"], "vgg16", "auto",
         ["config.json", "model.safetensors"]),
    ],
)  # fmt: skip
def test_only_what_the_role_needs(
    listing: list[str], role: str, variant: Variant, wanted: list[str]
) -> None:
    assert needed_files(listing, role, "here", variant) == sorted(wanted)


@pytest.mark.parametrize(
    ("listing", "role", "variant", "told"),
    [
        ([], "dit", "auto", "it holds no files"),
        (["README.md"], "t5", "auto", r"needs config\.json \+ model\.safetensors"),
        (DIT, "tokenizer", "jit", r"needs autoencoder\.jit, and it holds"),
        (DIT, "dit", "jit", r"role 'dit' has no variant 'jit'; it has model\.pt, nemo"),
    ],
)
def test_what_is_needed_and_what_is_there_is_said(
    listing: list[str], role: str, variant: Variant, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        needed_files(listing, role, "here", variant)


def test_sources() -> None:
    assert parse_source("hf://nvidia/x").text == "hf://nvidia/x@main"
    pinned = parse_source(f"hf://nvidia/x@{'a' * 40}")
    assert pinned.pinned
    assert not parse_source("hf://nvidia/x@aaaa").pinned
    assert parse_source("s3://bucket/a/b").place == "s3://bucket/a/b/"
    assert parse_source("file:///a%20b/c").place == "/a b/c"
