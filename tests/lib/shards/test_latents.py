"""A sample of the latent data set survives writing and reading, bit for bit."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.lib.contract import UserError
from components.lib.cosmos.conditions import Conditions
from components.lib.shards.latents import ClipInfo, latent_parts, parse_latent, prompt_digest

INFO = ClipInfo(
    video="s3://fleet/a b/drive 7.mp4",
    video_sha256="ab" * 32,
    prompt="A video of sks „street“.",
    prompt_sha256=prompt_digest("A video of sks „street“."),
    start=5,
    start_frame=10,
    num_frames=9,
    fps=15.0,
    source_fps=30.0,
    height=720,
    width=1280,
    clip_height=64,
    clip_width=96,
    resize="crop",
    drive="d7",
)


@settings(max_examples=25, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 5)] * 4), seed=st.integers(0, 99))
def test_latents_come_back_bit_for_bit(shape: tuple[int, ...], seed: int) -> None:
    latent = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()
    found, info, conditions = parse_latent(latent_parts(latent, INFO))
    assert conditions == {}
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, latent)
    assert info == INFO


def test_what_a_model_is_shown_comes_back_with_its_latent() -> None:
    latent, text = torch.randn(16, 2, 4, 4).bfloat16(), torch.randn(512, 8).bfloat16()
    shown = {"text": text, "shown_frames": torch.tensor([1.0, 0.0])}
    sample = parse_latent(latent_parts(latent, INFO, shown))
    assert torch.equal(sample.latent, latent)
    assert list(sample.conditions) == sorted(shown)
    for name, tensor in shown.items():
        assert torch.equal(sample.conditions[name], tensor)
    batch = {name: tensor[None] for name, tensor in sample.conditions.items()}
    assert torch.equal(Conditions.of_batch({**batch, "latent": latent[None]}).text[0], text)


def test_equal_samples_have_equal_bytes() -> None:
    latent = torch.randn(16, 2, 8, 12).bfloat16()
    strided = latent.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert latent_parts(latent, INFO) == latent_parts(strided, INFO)


def test_the_info_is_plain_json() -> None:
    described = json.loads(latent_parts(torch.zeros(1, 1, 1, 1), INFO)["json"])
    assert described["start_frame"] == 10
    assert described["prompt"] == INFO.prompt


def test_a_latent_without_four_dimensions_is_refused() -> None:
    with pytest.raises(ValueError, match="4 dimensions"):
        latent_parts(torch.zeros(1, 16, 2, 8, 12), INFO)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"json": b"{}"}, r"k has no \.safetensors part"),
        ({"json": b"{}", "safetensors": b""}, "latent of k is not readable"),
        ({"json": b"{}", "safetensors": b"\xff" * 64}, "latent of k is not readable"),
        ({"json": b"nonsense", **{}}, "k has no"),
    ],
)
def test_unreadable_samples_are_named(parts: dict[str, bytes], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_latent(parts, "k")


def test_an_unreadable_info_is_named() -> None:
    parts = latent_parts(torch.zeros(1, 1, 1, 1), INFO)
    with pytest.raises(UserError, match="info of k is not readable"):
        parse_latent({**parts, "json": b'{"video": 3}'}, "k")


def test_prompts_are_known_by_their_utf8_digest() -> None:
    # sha256 of the three bytes "abc", from FIPS 180-2.
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert prompt_digest("abc") == expected
