"""Batching and truncation of prompts, and encoding of many prompts at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.lib.contract import UserError
from components.lib.cosmos.diffusion.text import (
    MAX_TOKENS,
    TextEncoder,
    padded_length,
    plan_batches,
    truncate,
)
from components.lib.cosmos.formats.tiny_text import write_tiny_t5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5") / "t5"
    write_tiny_t5(folder, 0)
    return folder


@given(st.lists(st.integers(1, 512), max_size=60), st.integers(512, 8192))
def test_batches_hold_every_prompt_once_and_keep_to_the_limit(
    lengths: list[int], limit: int
) -> None:
    batches = plan_batches(lengths, limit)
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    for batch in batches:
        width = padded_length(max(lengths[position] for position in batch))
        assert len(batch) * width <= limit


@given(st.lists(st.integers(1, 512), min_size=1, max_size=60))
def test_prompts_of_like_length_share_a_batch(lengths: list[int]) -> None:
    order = [lengths[position] for batch in plan_batches(lengths, 2048) for position in batch]
    assert order == sorted(lengths, reverse=True)


def test_a_long_prompt_keeps_its_end_mark() -> None:
    assert truncate([5] * 600 + [1]) == [5] * 511 + [1]
    assert truncate([5, 6, 1]) == [5, 6, 1]


def test_batching_changes_nothing(folder: Path) -> None:
    prompts = ["a car", "a robot picks up a box " * 20, "", "rain at night", "x " * 900]
    encoder = TextEncoder(folder, dtype="float32")
    together, lengths = encoder.encode(prompts, max_tokens=1024)
    assert together.shape == (5, MAX_TOKENS, encoder.dim)
    for position, prompt in enumerate(prompts):
        alone, length = encoder.encode([prompt])
        assert int(length) == int(lengths[position])
        assert not together[position, int(length) :].any()
        torch.testing.assert_close(together[position], alone[0], rtol=0.02, atol=0.02)
    assert int(lengths[4]) == MAX_TOKENS
    assert int(lengths[2]) == 1


def test_no_prompts_give_no_embeddings(folder: Path) -> None:
    embeddings, lengths = TextEncoder(folder, dtype="float32").encode([])
    assert embeddings.shape == (0, MAX_TOKENS, 64)
    assert lengths.shape == (0,)


def test_a_folder_that_is_no_t5_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not hold a T5"):
        TextEncoder(tmp_path)
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="does not hold a T5"):
        TextEncoder(tmp_path)


def test_missing_weights_are_an_error(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    dropped = next(name for name in weights if "SelfAttention.q" in name)
    del weights[dropped]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 weights"):
        TextEncoder(tmp_path)
