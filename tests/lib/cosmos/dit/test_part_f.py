"""Numbers that the reference gave when it was run, one test for each of them.

Parameter counts, names and shapes are in `test_keys.py`, parity with diffusers in
`test_parity.py`, guidance in `test_sampling.py`.
"""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import AutoencoderKLCosmos

from components.lib.contract import UserError
from components.lib.cosmos.diffusion.edm import loss_weight, preconditioning
from components.lib.cosmos.dit.network import DIT_PRESETS, DiT
from components.lib.cosmos.tokenizer.fsq import FSQ
from components.lib.cosmos.tokenizer.haar import HaarPatch, HaarUnpatch
from components.lib.cosmos.tokenizer.network import TOKENIZER_PRESETS, CosmosTokenizer


def tokenizer(name: str) -> CosmosTokenizer:
    torch.manual_seed(0)
    return CosmosTokenizer(TOKENIZER_PRESETS[name]).requires_grad_(False)


def test_haar_of_a_constant_is_the_constant_and_zeros() -> None:
    bands = HaarPatch(4)(torch.full((1, 3, 9, 8, 8), 0.7))
    assert bands.shape == (1, 192, 3, 2, 2)
    assert torch.allclose(bands[:, :3], torch.tensor(0.7))
    assert float(bands[:, 3:].abs().max()) < 1e-6


def test_haar_is_lossless() -> None:
    video = torch.randn(2, 3, 17, 16, 24)
    assert float((HaarUnpatch(4)(HaarPatch(4)(video)) - video).abs().max()) < 1e-6


def test_haar_bands_of_a_step_along_the_width() -> None:
    step = torch.tensor([0.0, 1.0]).expand(1, 1, 1, 2, 2)
    bands = HaarPatch(2)(step)
    assert torch.allclose(bands.flatten(), torch.tensor([0.5, -0.5, 0, 0, 0, 0, 0, 0]))


@pytest.mark.parametrize(("axis", "band"), [(4, 1), (3, 2), (2, 4)])
def test_haar_band_order_is_time_height_width(axis: int, band: int) -> None:
    """A step along one axis appears in the band that is high in that axis alone."""
    ramp = torch.tensor([0.0, 1.0]).view([2 if i == axis else 1 for i in range(5)])
    video = ramp.expand(1, 1, 2, 2, 2)
    # one more frame in front, because the patcher repeats the first
    bands = HaarPatch(2)(torch.cat([torch.zeros(1, 1, 1, 2, 2), video], dim=2))[0, :, 1]
    nonzero = bands.flatten().nonzero().flatten().tolist()
    assert nonzero == [0, band]


@pytest.mark.parametrize("name", ["tiny-cv", "tiny-dv"])
@pytest.mark.parametrize(("frames", "latents"), [(121, 16), (33, 5), (17, 3), (1, 1)])
def test_frames_to_latent_frames_and_back(name: str, frames: int, latents: int) -> None:
    config = TOKENIZER_PRESETS[name].model_copy(update={"window": 121})
    torch.manual_seed(0)
    model = CosmosTokenizer(config).requires_grad_(False)
    video = torch.rand(1, 3, frames, 32, 32) * 2 - 1
    latent = model.encode(video)
    assert latent.shape[2] == latents == config.latent_frames(frames)
    assert model.decode(latent).shape == video.shape


@pytest.mark.parametrize("frames", [10, 8])
def test_other_frame_counts_come_back_as_nine_so_they_are_refused(frames: int) -> None:
    model = tokenizer("tiny-cv")
    video = torch.zeros(1, 3, frames, 32, 32)
    with pytest.raises(UserError, match="8k \\+ 1"):
        model.encode(video)
    # without the refusal, as in the architecture's other implementation
    config = TOKENIZER_PRESETS["tiny-cv"]
    permissive = AutoencoderKLCosmos(
        encoder_block_out_channels=config.encoder_channels,
        decode_block_out_channels=config.decoder_channels,
    )
    with torch.no_grad():
        assert permissive(video).sample.shape[2] == 9


def test_latent_and_tokens_of_a_training_clip() -> None:
    shape = TOKENIZER_PRESETS["CV8x8x8"].latent_shape(121, 704, 1280)
    assert shape == (16, 16, 88, 160)
    config = DIT_PRESETS["7B"]
    assert math.prod(config.grid(*shape[1:])) == 56_320
    with torch.device("meta"):
        model = DiT(config)
        inputs = torch.empty(1, config.in_channels, *shape[1:])
    assert tuple(model.x_embedder.patches(inputs).shape) == (56_320, 1, 68)


def test_discrete_latent_of_the_finetuning_clip() -> None:
    config = TOKENIZER_PRESETS["DV8x16x16"]
    assert config.latent_shape(33, 256, 256) == (6, 5, 16, 16)
    assert TOKENIZER_PRESETS["CV8x8x8"].latent_shape(33, 256, 256) == (16, 5, 32, 32)


def test_weighted_target_has_unit_scale_at_every_sigma() -> None:
    sigma = torch.logspace(-4, 3, 200, dtype=torch.float64)
    product = preconditioning(sigma).out ** 2 * loss_weight(sigma)
    assert torch.allclose(product, torch.ones_like(product), rtol=1e-12)


def test_fsq_indices_reach_both_ends_and_give_the_codes_back() -> None:
    quantiser = FSQ((8, 8, 8, 5, 5, 5))
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, 6, 8, 32, 32, generator=generator) * 10
    codes = quantiser.quantise(z)
    indices = quantiser.indices(codes)
    assert int(indices.min()) == 0 and int(indices.max()) == 63_999
    assert quantiser.codes == 64_000
    assert torch.equal(quantiser.codes_of(indices), codes)
    assert quantiser.basis == (1, 8, 64, 512, 2560, 12800)


@pytest.mark.parametrize(("frame", "changed"), [(0, [0, 1, 2]), (8, [1, 2]), (9, [2]), (16, [2])])
def test_encoder_is_causal(frame: int, changed: list[int]) -> None:
    model = tokenizer("tiny-cv").double()
    video = torch.rand(1, 3, 17, 32, 32, dtype=torch.float64) * 2 - 1
    other = video.clone()
    other[:, :, frame] = -other[:, :, frame]
    difference = (model.encode(video) - model.encode(other)).abs().amax((0, 1, 3, 4))
    assert difference.nonzero().flatten().tolist() == changed


@pytest.mark.parametrize(("latent_frame", "first"), [(1, 1), (2, 9)])
def test_decoder_is_causal(latent_frame: int, first: int) -> None:
    model = tokenizer("tiny-cv").double()
    latent = torch.randn(1, 16, 3, 4, 4, dtype=torch.float64)
    other = latent.clone()
    other[:, :, latent_frame] += 1
    difference = (model.decode(latent) - model.decode(other)).abs().amax((0, 1, 3, 4))
    assert difference.nonzero().flatten().tolist() == list(range(first, 17))
