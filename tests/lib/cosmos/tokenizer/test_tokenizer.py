"""The tokenizers beyond one window: long videos, tiles, statistics, indices, refusals."""

from __future__ import annotations

import copy
import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.lib.contract import UserError
from components.lib.cosmos.tokenizer import network as module
from components.lib.cosmos.tokenizer.network import (
    TOKENIZER_PRESETS,
    CosmosTokenizer,
    TokenizerConfig,
    default_statistics,
)
from components.lib.cosmos.tokenizer.tiling import tiled

SMALL = TokenizerConfig(channels=8, multipliers=(1, 2, 2), res_blocks=1, window=17)
DISCRETE = TOKENIZER_PRESETS["tiny-dv"].model_copy(
    update={"channels": 8, "multipliers": (1, 2, 2), "res_blocks": 1, "window": 17}
)


def make(config: TokenizerConfig = SMALL) -> CosmosTokenizer:
    torch.manual_seed(0)
    return CosmosTokenizer(config).requires_grad_(False)


def clip(frames: int, height: int = 32, width: int = 48, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.rand(batch, 3, frames, height, width, generator=generator) * 2 - 1


@pytest.mark.parametrize("config", [SMALL, DISCRETE], ids=["cv", "dv"])
@pytest.mark.parametrize("frames", [1, 9, 17, 25, 33, 41])
def test_any_8k_plus_1_frames_come_back(config: TokenizerConfig, frames: int) -> None:
    model, video = make(config), clip(frames)
    latent = model.encode(video)
    assert latent.shape == (1, *config.latent_shape(frames, 32, 48))
    assert model.reconstruct(video).shape == video.shape


def test_a_long_video_is_its_windows() -> None:
    model, video = make(), clip(41)
    latent = model.encode(video)
    whole = [model.encode(video[:, :, start : start + 17]) for start in (0, 17)]
    last = torch.cat([video[:, :, 34:], video[:, :, -1:].expand(-1, -1, 2, -1, -1)], 2)
    assert torch.equal(latent, torch.cat([*whole, model.encode(last)], 2))
    video_again = model.reconstruct(video)
    assert torch.equal(video_again[:, :, 17:34], model.reconstruct(video[:, :, 17:34]))


@given(frames=st.integers(0, 60).map(lambda k: 8 * k + 1), window=st.sampled_from([9, 17, 121]))
@settings(max_examples=50, deadline=None)
def test_latent_frames_hold_every_frame(frames: int, window: int) -> None:
    config = SMALL.model_copy(update={"window": window})
    latents = config.latent_frames(frames)
    full, rest = divmod(latents, config.window_latents)
    held = full * window + (8 * (rest - 1) + 1 if rest else 0)
    assert frames <= held < frames + 8


@pytest.mark.parametrize("name", ["CV8x8x8", "tiny-cv"])
@pytest.mark.parametrize(
    ("frames", "latents"), [(121, 16), (129, 18), (137, 19), (249, 34), (1017, 135)]
)
def test_latents_of_long_videos_have_the_shape_that_the_settings_say(
    name: str, frames: int, latents: int
) -> None:
    """The network is the oracle: on the meta device it cuts windows and convolves, and only the
    numbers are missing."""
    config = TOKENIZER_PRESETS[name]
    with torch.device("meta"), torch.no_grad():
        model = CosmosTokenizer(config)
        latent = model.encode(torch.empty(1, 3, frames, 64, 96))
        video = model.decode(latent, frames=frames)
    assert latent.shape[1:] == config.latent_shape(frames, 64, 96) == (16, latents, 8, 12)
    assert video.shape == (1, 3, frames, 64, 96)


@given(available=st.integers(1, 2000), temporal=st.sampled_from([1, 4, 8]))
def test_the_longest_whole_clip_is_the_longest_that_passes(available: int, temporal: int) -> None:
    config = TokenizerConfig(temporal=temporal, patch=min(temporal, 4))
    frames = config.whole_frames(available)
    assert available - temporal < frames <= available
    config.check_clip(frames, 64, 96)
    for length in range(frames + 1, available + 1):
        with pytest.raises(UserError, match=f"Use {frames} or {frames + temporal}"):
            config.check_clip(length, 64, 96)


@pytest.mark.parametrize(
    ("clip", "words"),
    [
        ((120, 704, 1280), "120 frames .*8k \\+ 1 frames. Use 113 or 121"),
        ((0, 704, 1280), "0 frames .*Use 1 or 9"),
        ((-8, 704, 1280), "-8 frames .*Use 1 or 9"),
        ((121, 704, 1270), "1270 x 704 .*multiples of 16. Use 1264 x 704"),
        ((121, 0, 1280), "1280 x 0 .*Use 1280 x 16"),
    ],
)
def test_what_does_not_fit_is_told_what_does(clip: tuple[int, int, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        TOKENIZER_PRESETS["CV8x8x8"].check_clip(*clip)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 3, 16, 32, 32), "16 frames.*9 or 17"),
        ((1, 3, 0, 32, 32), "0 frames"),
        ((1, 3, 9, 40, 32), "32 x 40.*multiples of 16"),
        ((1, 3, 9, 32, 0), "0 x 32"),
        ((3, 9, 32, 32), "must be"),
        ((1, 4, 9, 32, 32), "must be"),
    ],
)
def test_videos_that_do_not_fit_are_refused_with_their_size(
    shape: tuple[int, ...], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        make().encode(torch.zeros(shape))


def test_a_batch_is_its_samples() -> None:
    model, video = make(), clip(9, batch=3)
    one_by_one = torch.cat([model.encode(video[i : i + 1]) for i in range(3)])
    assert torch.allclose(model.encode(video), one_by_one, atol=1e-6)


class TestDiscrete:
    def test_indices_carry_the_whole_latent(self) -> None:
        model, video = make(DISCRETE), clip(25)
        indices = model.encode_indices(video)
        assert indices.shape == (1, *DISCRETE.latent_shape(25, 32, 48)[1:])
        assert indices.dtype == torch.int64
        assert torch.equal(model.codes(indices), model.encode(video))
        assert torch.equal(model.decode_indices(indices, frames=25), model.reconstruct(video))

    def test_gradients_pass_the_quantiser(self) -> None:
        model = make(DISCRETE).requires_grad_(True)
        model(clip(9)).square().mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        assert float(model.encoder.conv_in.conv_s.weight.grad.abs().max()) > 0

    def test_a_continuous_tokenizer_has_no_indices(self) -> None:
        with pytest.raises(UserError, match="continuous"):
            make().encode_indices(clip(9))

    def test_indices_out_of_range_are_refused(self) -> None:
        with pytest.raises(ValueError, match="63999"):
            make(DISCRETE).decode_indices(torch.full((1, 1, 2, 2), 64_000))


class TestStatistics:
    def test_published_table(self) -> None:
        mean, std = default_statistics(TOKENIZER_PRESETS["CV8x8x8"])
        assert mean.shape == std.shape == (16, 16)
        # the first latent frame stands apart from the others
        assert mean[0, 0].item() == pytest.approx(0.11362758)
        assert mean[0, 1].item() == pytest.approx(-0.0171717)
        assert std[12, 0].item() == pytest.approx(0.35586974)
        data = json.loads((Path(module.__file__).parent / "latent_stats_cv8x8x8.json").read_text())
        import diffusers.models.autoencoders.autoencoder_kl_cosmos as oracle

        assert list(chain.from_iterable(data["mean"])) == oracle.LATENTS_MEAN
        assert list(chain.from_iterable(data["std"])) == oracle.LATENTS_STD

    def test_normalise_uses_the_frame_within_its_window_and_is_undone(self) -> None:
        model = make()
        generator = torch.Generator().manual_seed(0)
        mean = torch.randn(16, 3, generator=generator)
        std = torch.rand(16, 3, generator=generator) + 0.5
        model.set_latent_statistics(mean, std)
        latent = torch.randn(2, 16, 5, 2, 2, generator=generator)
        normal = model.normalise(latent)
        # the fourth latent frame is the first of the second window
        wanted = (latent[:, :, 3] - mean[:, 0, None, None]) / std[:, 0, None, None]
        assert torch.allclose(normal[:, :, 3], wanted)
        assert torch.allclose(model.denormalise(normal), latent, atol=1e-6)

    def test_wrong_tables_are_refused(self) -> None:
        with pytest.raises(UserError, match=r"\(16, 3\)"):
            make().set_latent_statistics(torch.zeros(16, 2), torch.ones(16, 3))
        with pytest.raises(UserError, match="positive"):
            make().set_latent_statistics(torch.zeros(16, 3), torch.zeros(16, 3))

    def test_they_travel_beside_the_state_dict_and_survive_any_cast(self) -> None:
        model = make(SMALL.model_copy(update={"window": 121, "statistics": "cv8x8x8"}))
        assert not set(model.extra_state_tensors()) & set(model.state_dict())
        before = model.extra_state_tensors()["latents_mean"].clone()
        model.bfloat16()
        assert torch.equal(model.extra_state_tensors()["latents_mean"], before)
        with torch.device("meta"):
            bare = CosmosTokenizer(model.config)
        bare.to_empty(device="cpu")
        assert torch.equal(bare.latent_statistics[0], before)


class TestTiles:
    def test_identity_is_unchanged(self) -> None:
        x = torch.randn(1, 2, 3, 70, 50)
        assert torch.allclose(tiled(lambda part: part, x, 24, 8, 1, 1), x, atol=1e-5)

    @pytest.mark.parametrize(("up", "down"), [(4, 1), (1, 2)])
    def test_local_maps_are_unchanged(self, up: int, down: int) -> None:
        def resize(part: torch.Tensor) -> torch.Tensor:
            if up > 1:
                return part.repeat_interleave(up, -1).repeat_interleave(up, -2)
            return part[..., ::down, ::down]

        x = torch.randn(1, 1, 1, 64, 96)
        assert torch.allclose(tiled(resize, x, 32, 8, up, down), resize(x), atol=1e-5)

    def test_no_tile_is_larger_than_asked(self) -> None:
        seen = []

        def look(part: torch.Tensor) -> torch.Tensor:
            seen.append(part.shape[-2:])
            return part

        tiled(look, torch.zeros(1, 1, 1, 100, 30), 32, 8, 1, 1)
        assert max(max(shape) for shape in seen) <= 32 and len(seen) > 3

    def test_tiled_coding_is_close_to_coding_in_one_piece(self) -> None:
        model, video = make(), clip(9, 128, 160)
        smooth = torch.nn.functional.avg_pool3d(video, (1, 9, 9), stride=1, padding=(0, 4, 4))
        whole, tiles = model.encode(smooth), model.encode(smooth, tile=64)
        assert tiles.shape == whole.shape
        inside = (tiles - whole).abs().mean() / whole.abs().mean()
        assert float(inside) < 0.5  # tiles do not see the rest of the picture
        assert model.decode(whole, tile=64).shape == smooth.shape
        assert model.reconstruct(smooth, tile=64).shape == smooth.shape

    def test_a_picture_within_one_tile_is_coded_in_one_piece(self) -> None:
        model, video = make(), clip(9, 64, 64)
        assert torch.equal(model.encode(video, tile=64), model.encode(video))
        latent = model.encode(video)
        assert torch.equal(model.decode(latent, tile=64), model.decode(latent))

    @pytest.mark.parametrize("tile", [8, 40, 70])
    def test_odd_tiles_are_refused(self, tile: int) -> None:
        with pytest.raises(UserError, match="multiple of 16"):
            make().encode(clip(9, 128, 128), tile=tile)


def test_renamed_tree_is_one_tree() -> None:
    """The published names and the attributes that diffusers' code reads are the same modules."""
    model = make()
    twin = copy.deepcopy(model)
    twin.state_dict()["encoder.conv_in.0.conv3d.weight"].zero_()
    assert not torch.equal(twin.encode(clip(9)), model.encode(clip(9)))
    assert torch.equal(model.encode(clip(9)), make().encode(clip(9)))
    assert len(list(model.parameters())) == len(model.state_dict())


def test_encoder_and_decoder_compile_without_a_break() -> None:
    model, video = make(), clip(9)
    torch._dynamo.reset()
    compiled = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(video), model(video), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"window": 18}, "8k \\+ 1"),
        ({"spatial": 12}, "power of two"),
        ({"patch": 16}, "exceed"),
        ({"fsq_levels": (8, 8)}, "one level per"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    change: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        TokenizerConfig(**change)
