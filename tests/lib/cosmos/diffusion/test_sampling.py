"""The solvers: against diffusers' scheduler, against exact solutions, and from prompt to frames."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from components.lib.contract import Progress, UserError
from components.lib.cosmos.conditions import Conditions
from components.lib.cosmos.diffusion.edm import denoise
from components.lib.cosmos.diffusion.sampling import (
    Denoiser,
    SamplingConfig,
    guided_denoiser,
    initial_noise,
    sample,
    sampler_sigmas,
)
from components.lib.cosmos.diffusion.text_to_video import (
    StoredEmbedding,
    VideoRequest,
    decode_frames,
    latent_shape,
    make_video,
    sample_latent,
)
from components.lib.cosmos.dit.network import DIT_PRESETS, DiT
from components.lib.cosmos.tokenizer.network import TOKENIZER_PRESETS, CosmosTokenizer

SMALL = DIT_PRESETS["tiny"].model_copy(update={"layers": 2})


def small_model(seed: int = 0) -> DiT:
    model = DiT(SMALL, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # away from the zero modulation of a fresh model
        for name, parameter in model.named_parameters():
            if name.endswith("adaLN_modulation.2.weight"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@pytest.mark.parametrize("steps", [5, 35])
def test_sigma_grid_equals_diffusers(steps: int) -> None:
    scheduler = EDMEulerScheduler()
    scheduler.set_timesteps(steps)
    ours = sampler_sigmas(steps, 80.0, 0.002, 7.0)
    assert torch.equal(ours.float(), scheduler.sigmas[:-1])
    assert torch.allclose(0.25 * ours.float().log(), scheduler.timesteps)


def test_reference_grid_has_36_levels_from_80_to_0_002() -> None:
    grid = sampler_sigmas(36, 80.0, 0.002, 7.0)
    assert len(grid) == 36
    assert grid[0] == pytest.approx(80.0) and grid[-1] == pytest.approx(0.002)
    assert (grid.diff() < 0).all()
    # by hand: (80^(1/7) + 1/35 (0.002^(1/7) - 80^(1/7)))^7
    assert grid[1] == pytest.approx((80 ** (1 / 7) + (0.002 ** (1 / 7) - 80 ** (1 / 7)) / 35) ** 7)


def test_preconditioning_equals_diffusers() -> None:
    scheduler = EDMEulerScheduler()
    x, raw = torch.randn(2, 16, 1, 4, 4), torch.randn(2, 16, 1, 4, 4)
    seen: dict[str, torch.Tensor] = {}

    def network(scaled: torch.Tensor, c_noise: torch.Tensor, _: Conditions) -> torch.Tensor:
        seen.update(scaled=scaled, c_noise=c_noise)
        return raw

    for sigma in (0.002, 0.3, 1.0, 80.0):
        level = torch.full((2,), sigma)
        got = denoise(network, x, level, Conditions(torch.zeros(2, 1, 1)))
        one = torch.tensor(sigma)
        assert torch.allclose(got, scheduler.precondition_outputs(x, raw, one), atol=1e-6)
        assert torch.allclose(seen["scaled"], scheduler.precondition_inputs(x, one), atol=1e-6)
        assert torch.allclose(seen["c_noise"][0], scheduler.precondition_noise(one), atol=1e-6)


def test_whole_euler_run_equals_diffusers() -> None:
    """The loop of diffusers' pipeline, its scheduler and guidance, around the same network."""
    model = small_model()
    text, negative = torch.randn(1, 8, 64), torch.randn(1, 8, 64)
    fps = torch.tensor([24.0])
    config = SamplingConfig(solver="euler", steps=12, guidance=3.0)
    noise = initial_noise((1, 16, 3, 4, 6), 1)
    ours = sample(guided_denoiser(model, Conditions(text, fps), negative, 3.0), noise, config)

    scheduler = EDMEulerScheduler()
    scheduler.set_timesteps(12)
    latents = noise * scheduler.config.sigma_max
    with torch.no_grad():
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(latents, t)
            sigma = scheduler.sigmas[scheduler.step_index]
            clean = [
                scheduler.precondition_outputs(
                    latents, model(scaled, t[None], Conditions(words, fps)), sigma
                )
                for words in (text, negative)
            ]
            guided = clean[0] + 3.0 * (clean[0] - clean[1])
            latents = scheduler.step(
                torch.zeros_like(latents), t, latents, pred_original_sample=guided
            ).prev_sample
    assert float((ours - latents).abs().max()) < 1e-4


def gaussian_denoiser(mean: float, std: float) -> Denoiser:
    """The exact D when data ~ N(mean, std²)."""
    return lambda x, sigma: (std**2 * x + sigma**2 * mean) / (std**2 + sigma**2)


def gaussian_flow(
    x: torch.Tensor, mean: float, std: float, high: float, low: float
) -> torch.Tensor:
    """The exact solution of the probability flow for Gaussian data."""
    return mean + (x - mean) * math.sqrt((std**2 + low**2) / (std**2 + high**2))


def solver_error(solver: Literal["res", "euler"], steps: int) -> float:
    noise = initial_noise((1, 4, 2, 3, 3), 3)
    config = SamplingConfig(solver=solver, steps=steps, guidance=0.0)
    got = sample(gaussian_denoiser(0.3, 0.5), noise, config)
    exact = gaussian_flow(noise.double() * 80, 0.3, 0.5, 80.0, 0.0)
    return float((got - exact).abs().max())


def test_solvers_converge_with_their_order() -> None:
    assert solver_error("res", 35) < 0.3 * solver_error("euler", 35)
    first = solver_error("euler", 40) / solver_error("euler", 160)
    second = solver_error("res", 40) / solver_error("res", 160)
    assert 3 < first < 6  # order 1: a quarter of the step, a quarter of the error
    assert second > 10  # order 2: a sixteenth


@given(value=st.floats(-3, 3), steps=st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_res_is_exact_when_the_clean_latent_is_known(value: float, steps: int) -> None:
    config = SamplingConfig(steps=steps, guidance=0.0)
    got = sample(lambda x, sigma: torch.full_like(x, value), torch.ones(1, 1, 1, 1, 1), config)
    assert got.item() == pytest.approx(value, abs=1e-6)


def test_res_step_matches_the_published_coefficients() -> None:
    """b1 = φ1 - φ2 / c2, b2 = φ2 / c2 with φ of -h and c2 = (λ_before - λ) / h, by hand."""
    sigmas = sampler_sigmas(3, 80.0, 0.002, 7.0).tolist()
    answers = iter([torch.tensor(2.0), torch.tensor(-1.0), torch.tensor(0.0)])
    seen = []

    def evaluate(x: torch.Tensor, sigma: float) -> torch.Tensor:
        seen.append(float(x))
        return next(answers).expand_as(x)

    sample(evaluate, torch.ones(1), SamplingConfig(steps=2, guidance=0.0))
    s, t, u = (-math.log(value) for value in sigmas)
    x1 = sigmas[1] / sigmas[0] * 80 + (1 - sigmas[1] / sigmas[0]) * 2.0
    h, c2 = u - t, (s - t) / (u - t)
    phi1 = (math.exp(-h) - 1) / -h
    phi2 = (phi1 - 1) / -h
    x2 = math.exp(-h) * x1 + h * ((phi1 - phi2 / c2) * -1.0 + phi2 / c2 * 2.0)
    assert seen == pytest.approx([80.0, x1, x2], rel=1e-9)


def test_guidance_7_is_a_scale_of_8() -> None:
    calls = iter([torch.full((1,), 3.0), torch.full((1,), 1.0)])
    evaluate = guided_denoiser(
        lambda *_: next(calls), Conditions(torch.ones(1, 1, 1)), None, 7.0, sigma_data=1e9
    )
    # with σ_data huge, D is F scaled by σ, so the classifier-free formula can be read off
    x = torch.zeros(1)
    got = evaluate(x, 1.0)
    assert got.item() == pytest.approx(1.0 + 8 * (3.0 - 1.0))


def test_no_negative_prompt_means_zero_rows() -> None:
    texts = []

    def network(x: torch.Tensor, c_noise: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        texts.append(conditions.text)
        return x

    guided_denoiser(network, Conditions(torch.ones(1, 4, 2)), None, 7.0)(torch.zeros(1, 1), 1.0)
    assert [float(text.abs().sum()) for text in texts] == [8.0, 0.0]


def test_noise_is_numpy_s_for_the_seed() -> None:
    np.random.seed(1)  # noqa: NPY002 - the reference draws from the legacy global generator
    assert np.array_equal(
        initial_noise((1, 16, 2, 3, 4), 1).numpy(),
        np.random.standard_normal((1, 16, 2, 3, 4)).astype(np.float32),  # noqa: NPY002
    )


def test_evaluations_of_the_reference() -> None:
    counted = []
    config = SamplingConfig()

    def network(x: torch.Tensor, *_: object) -> torch.Tensor:
        counted.append(1)
        return x

    evaluate = guided_denoiser(network, Conditions(torch.zeros(1, 1, 1)), None, 7.0)
    sample(evaluate, torch.zeros(1, 1), config)
    assert len(counted) == config.evaluations() == 2 * 36


class Words:
    def __init__(self, dim: int = 64) -> None:
        self.dim = dim

    def encode(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [torch.full((512, self.dim), len(prompt) / 100) for prompt in prompts]
        return torch.stack(rows), torch.tensor([512] * len(rows))


REQUEST = VideoRequest(
    prompt="a road", frames=9, height=32, width=48, sampling=SamplingConfig(steps=3)
)


def parts() -> dict[str, Any]:
    torch.manual_seed(0)
    tokenizer = CosmosTokenizer(TOKENIZER_PRESETS["tiny-cv"])
    return {
        "load_text": Words,
        "load_model": small_model,
        "load_tokenizer": lambda: tokenizer,
    }


def test_prompt_to_frames_is_repeatable_and_follows_the_seed(progress: Progress) -> None:
    first = make_video(REQUEST, **parts(), progress=progress)
    again = make_video(REQUEST, **parts(), progress=progress)
    other_seed = REQUEST.model_copy(update={"sampling": SamplingConfig(steps=3, seed=2)})
    assert first.shape == (9, 32, 48, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, make_video(other_seed, **parts(), progress=progress))
    assert not np.array_equal(
        first,
        make_video(
            REQUEST.model_copy(update={"negative_prompt": "blur"}), **parts(), progress=progress
        ),
    )


def test_only_one_network_is_alive_while_denoising(progress: Progress) -> None:
    import gc
    import weakref

    loaded = parts()
    encoders: list[weakref.ref[Words]] = []

    def load_text() -> Words:
        encoder = Words()
        encoders.append(weakref.ref(encoder))
        return encoder

    def load_model() -> DiT:
        gc.collect()
        assert encoders[0]() is None, "the text encoder is still held"
        return small_model()

    make_video(
        REQUEST, **(loaded | {"load_text": load_text, "load_model": load_model}), progress=progress
    )


def test_subject_is_put_before_the_prompt() -> None:
    request = REQUEST.model_copy(update={"subject": "teal robot"})
    assert request.full_prompt == "A video of sks teal robot. a road"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"frames": 10}, "8k \\+ 1"),
        ({"height": 40}, "multiples of 16"),
        ({"width": 8000}, "width"),
    ],
)
def test_impossible_requests_are_refused(change: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        latent_shape(REQUEST.model_copy(update=change), TOKENIZER_PRESETS["CV8x8x8"], small_model())


def test_wrong_companions_are_refused() -> None:
    model = small_model()
    with pytest.raises(UserError, match="latent channels"):
        latent_shape(REQUEST, TOKENIZER_PRESETS["tiny-dv"], model)
    with pytest.raises(UserError, match="text encoder"):
        sample_latent(
            model,
            Conditions(torch.zeros(1, 4, 7)),
            None,
            (1, 16, 1, 4, 4),
            SamplingConfig(steps=1),
        )


def test_black_grey_and_white_survive_the_way_to_pixels() -> None:
    class Flat:
        def denormalise(self, latent: torch.Tensor) -> torch.Tensor:
            return latent

        def decode(self, latent: torch.Tensor, **_: object) -> torch.Tensor:
            return (
                torch.tensor([-1.5, -1.0, 0.0, 1.0, 2.0]).view(1, 1, 5, 1, 1).expand(1, 3, 5, 1, 1)
            )

    frames = decode_frames(cast(CosmosTokenizer, Flat()), torch.zeros(1), 5)
    assert frames[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]


def test_stored_embedding_replaces_the_text_encoder(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "prompt.safetensors"
    rows = torch.randn(512, 64).bfloat16()
    save_file({"embedding": rows, "length": torch.tensor(5)}, path)
    embedding, length = StoredEmbedding(path).encode(["anything"])
    assert torch.equal(embedding[0], rows) and length.tolist() == [5]
    with pytest.raises(UserError, match="negative"):
        StoredEmbedding(path).encode(["a", "b"])
    with pytest.raises(UserError, match="not a prompt embedding"):
        StoredEmbedding(tmp_path / "none.safetensors").encode(["a"])
