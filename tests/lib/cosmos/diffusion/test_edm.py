"""The training loss: equal to the published form, stable where that one is not."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.lib.cosmos.conditions import Conditions, leading_frames, over_latent
from components.lib.cosmos.diffusion.edm import (
    CONDITION_SIGMA,
    NoiseConfig,
    denoise,
    draw_sigma,
    edm_loss,
    loss_weight,
    preconditioning,
)

TEXT = Conditions(torch.zeros(2, 3, 4))


def network(x: torch.Tensor, c_noise: torch.Tensor, conditions: Conditions) -> torch.Tensor:
    """Some fixed nonlinear function of the inputs."""
    return torch.sin(3 * x) + c_noise.view(-1, 1, 1, 1, 1)


@given(sigma=st.floats(1e-3, 80), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_loss_is_the_published_weighted_distance(sigma: float, seed: int) -> None:
    """w(σ) (x0 - D(x0 + σ ε))² in fp64, from the text of the reference."""
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(2, 4, 2, 3, 3, generator=generator)
    noise = torch.randn(2, 4, 2, 3, 3, generator=generator)
    levels = torch.tensor([sigma, 1.0])
    got = edm_loss(network, latent, levels, noise, TEXT)

    wide = levels.double().view(-1, 1, 1, 1, 1)
    clean = 0.5 * latent.double()
    x = clean + wide * noise.double()
    c_skip, c_out, c_in, c_noise = preconditioning(wide)
    estimate = c_skip * x + c_out * network(c_in * x, c_noise.flatten(), TEXT)
    wanted = loss_weight(wide) * (clean - estimate) ** 2
    assert got.loss.item() == pytest.approx(wanted.mean().item(), rel=1e-4)
    assert got.per_sample.tolist() == pytest.approx(wanted.flatten(1).mean(1).tolist(), rel=1e-4)
    assert not got.per_sample.requires_grad


def test_a_network_that_knows_the_answer_has_no_loss() -> None:
    latent, noise = torch.randn(2, 4, 2, 3, 3), torch.randn(2, 4, 2, 3, 3)
    for value in (1e-3, 0.5, 80.0):
        sigma = torch.full((2,), value)

        def oracle(x: torch.Tensor, *_: object, s: float = value) -> torch.Tensor:
            clean = (0.5 * latent).double()
            noisy = clean + s * noise.double()
            scaling = preconditioning(torch.tensor(s, dtype=torch.float64))
            return (clean - scaling.skip * noisy) / scaling.out

        assert edm_loss(oracle, latent, sigma, noise, TEXT).loss.item() < 1e-9


def test_guessing_zero_costs_one_for_normalised_latents() -> None:
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(4, 16, 4, 16, 16, generator=generator)
    noise = torch.randn(4, 16, 4, 16, 16, generator=generator)
    sigma = torch.tensor([0.01, 0.3, 2.0, 60.0])
    zero = edm_loss(lambda x, *_: torch.zeros_like(x), latent, sigma, noise, TEXT)
    assert zero.per_sample.tolist() == pytest.approx([1.0] * 4, abs=0.02)


def test_the_network_sees_unit_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = []
    latent = torch.randn(3, 16, 4, 16, 16, generator=generator)
    noise = torch.randn(3, 16, 4, 16, 16, generator=generator)
    sigma = torch.tensor([0.001, 0.5, 80.0])

    def look(x: torch.Tensor, c_noise: torch.Tensor, _: Conditions) -> torch.Tensor:
        seen.append((x.flatten(1).std(1), c_noise))
        return x

    edm_loss(look, latent, sigma, noise, TEXT)
    deviations, c_noise = seen[0]
    assert deviations.tolist() == pytest.approx([1.0] * 3, abs=0.02)
    assert c_noise.tolist() == pytest.approx([math.log(float(s)) / 4 for s in sigma], rel=1e-5)


def test_sigma_draws_are_lognormal_and_repeatable() -> None:
    sigma = draw_sigma(20_000, torch.Generator().manual_seed(3))
    logs = sigma.log()
    assert logs.mean().item() == pytest.approx(0.0, abs=0.03)
    assert logs.std().item() == pytest.approx(1.0, abs=0.03)
    assert torch.equal(sigma, draw_sigma(20_000, torch.Generator().manual_seed(3)))
    shifted = draw_sigma(20_000, torch.Generator().manual_seed(3), NoiseConfig(mean=-3, std=2))
    assert torch.allclose(shifted.log(), logs * 2 - 3, atol=1e-4)


def test_conditions_reach_the_network() -> None:
    seen = []

    def look(x: torch.Tensor, c_noise: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        seen.append(conditions)
        return x

    conditions = Conditions(TEXT.text, torch.tensor([24.0, 30.0]), torch.zeros(2, 1, 24, 24))
    denoise(look, torch.zeros(2, 4, 2, 3, 3), torch.ones(2), conditions)
    assert seen[0] is conditions


class TestVideo2World:
    latent = torch.randn(2, 4, 5, 3, 3, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(2, 4, 5, 3, 3, generator=torch.Generator().manual_seed(2))
    frames = torch.tensor([1, 3])
    shown = Conditions(TEXT.text, shown_frames=leading_frames(frames, 5))

    def test_mask_marks_the_leading_frames(self) -> None:
        mask = over_latent(leading_frames(self.frames, 5), self.latent)
        assert mask.shape == (2, 1, 5, 3, 3)
        assert mask[:, 0, :, 0, 0].tolist() == [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0]]

    def test_shown_frames_are_nearly_clean_and_carry_no_loss(self) -> None:
        sigma = torch.tensor([5.0, 40.0])
        seen: dict[str, torch.Tensor] = {}

        def look(x: torch.Tensor, *_: object) -> torch.Tensor:
            seen["x"] = x
            return x.detach().requires_grad_()

        result = edm_loss(look, self.latent, sigma, self.noise, self.shown)
        # as the network would see a clean latent at the small condition noise
        scale = (CONDITION_SIGMA**2 + 0.25) ** -0.5
        shown = scale * (0.5 * self.latent[1, :, :3] + CONDITION_SIGMA * self.noise[1, :, :3])
        assert torch.allclose(seen["x"][1, :, :3], shown, atol=1e-5)
        free = edm_loss(look, self.latent, sigma, self.noise, TEXT)
        assert 0 < result.loss.item() < free.loss.item()

        outputs = []

        def remember(x: torch.Tensor, *_: object) -> torch.Tensor:
            outputs.append(x.detach().requires_grad_())
            return outputs[0]

        edm_loss(remember, self.latent, sigma, self.noise, self.shown).loss.backward()
        gradient = outputs[0].grad
        assert gradient is not None
        assert float(gradient[1, :, :3].abs().max()) == 0
        assert float(gradient[1, :, 3:].abs().min()) > 0
