"""The folded encoder computes what the tokenizer's own encoder computes."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from components.latent_encoding.encode import compiled_by_shape, encoder_of
from components.lib.cosmos.formats.tiny import initial_tokenizer
from components.lib.cosmos.tokenizer.config import TokenizerConfig
from components.lib.cosmos.tokenizer.folded import can_fold, fold_encoder
from components.lib.cosmos.tokenizer.network import CosmosTokenizer

CONFIGS = {
    "CV8x8x8 geometry": TokenizerConfig(channels=8),
    "one level less": TokenizerConfig(channels=8, multipliers=(2, 3)),
    "space only": TokenizerConfig(channels=8, spatial=16, temporal=4),
    "time only": TokenizerConfig(channels=8, spatial=4, temporal=8),
    "no downsampling": TokenizerConfig(channels=8, spatial=4, temporal=4),
    "small patch": TokenizerConfig(channels=8, patch=2),
    "other latent": TokenizerConfig(channels=8, latent_channels=6, z_channels=12, res_blocks=1),
}


def make(config: TokenizerConfig) -> CosmosTokenizer:
    tokenizer = CosmosTokenizer(config).eval()
    weights, _, _ = initial_tokenizer(config, 0)
    # Biases and norms start as zeros and ones, which would hide a mistake.
    generator = torch.Generator().manual_seed(1)
    noisy = {
        name: tensor.float() + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in weights.items()
    }
    tokenizer.load_state_dict(noisy)
    return tokenizer.requires_grad_(False)


def scaled(frames: torch.Tensor) -> torch.Tensor:
    return frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("frames", [1, 9, 17])
def test_folded_encoder_equals_the_plain_one(name: str, frames: int) -> None:
    tokenizer = make(CONFIGS[name])
    video = torch.randint(0, 256, (2, frames, 48, 64, 3), dtype=torch.uint8)
    expected = tokenizer.encode(scaled(video))
    found = fold_encoder(tokenizer, torch.float32)(video)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))


def test_bfloat16_stays_close_to_float32() -> None:
    tokenizer = make(CONFIGS["CV8x8x8 geometry"])
    video = torch.randint(0, 256, (1, 9, 48, 64, 3), dtype=torch.uint8)
    expected = tokenizer.encode(scaled(video))
    found = fold_encoder(tokenizer, torch.bfloat16)(video)
    assert found.dtype == torch.bfloat16
    assert float((found.float() - expected).std() / expected.std()) < 0.05


def test_a_clip_does_not_depend_on_its_neighbours_in_a_batch() -> None:
    encode = fold_encoder(make(CONFIGS["CV8x8x8 geometry"]), torch.float32)
    video = torch.randint(0, 256, (3, 9, 48, 64, 3), dtype=torch.uint8)
    alone = encode(video[1:2])
    torch.testing.assert_close(encode(video)[1:2], alone, rtol=1e-4, atol=1e-4)


def test_every_shape_of_clip_is_compiled() -> None:
    """Buckets of sizes and lengths make more shapes than the compiler takes by default."""
    torch._dynamo.reset()
    encode = fold_encoder(make(CONFIGS["CV8x8x8 geometry"]), torch.float32)
    counter = CompileCounterWithBackend("eager")
    compiled = compiled_by_shape(encode, counter)
    shapes = [(clips, frames, 16, 32) for clips in (1, 2, 3) for frames in (1, 9, 17)]
    for shape in [*shapes, *shapes]:
        video = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8)
        torch.testing.assert_close(compiled(video), encode(video), rtol=1e-4, atol=1e-4)
    assert counter.frame_count == len(shapes) > 8


def test_clips_longer_than_a_window_are_coded_window_by_window() -> None:
    tokenizer = make(TokenizerConfig(channels=8, window=9))
    video = torch.randint(0, 256, (1, 17, 48, 64, 3), dtype=torch.uint8)
    expected = tokenizer.encode(scaled(video))
    torch.testing.assert_close(encoder_of(tokenizer, torch.float32)(video), expected)


def test_a_discrete_tokenizer_cannot_be_folded() -> None:
    levels = (8, 8, 8, 5, 5, 5)
    config = TokenizerConfig(channels=8, latent_channels=6, spatial=16, fsq_levels=levels)
    assert not can_fold(CosmosTokenizer(config))
    assert can_fold(CosmosTokenizer(TokenizerConfig(channels=8)))
