"""From noise to a latent: the reference's second-order solver, and plain EDM Euler.

Both integrate ``dx/dσ = (x - D(x; σ)) / σ`` down the same grid of noise levels. ``res`` is the
reference's "2ab": in λ = -ln σ the equation is linear but for D, so the linear part is solved
exactly and D is extrapolated from the last two steps (an exponential Adams-Bashforth method of
order 2; one evaluation a step). It ends with one evaluation of D at the last σ. ``euler`` is
order 1 and what diffusers' EDMEulerScheduler does.

The state is fp64: the sum of 35 steps from σ = 80 down to 0.002 loses digits otherwise, and the
state is small next to the network.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from components.lib.contract import Frozen
from components.lib.cosmos.conditions import Conditions
from components.lib.cosmos.diffusion.edm import SIGMA_DATA, Network, denoise

Denoiser = Callable[[Tensor, float], Tensor]
OnStep = Callable[[], None]


class SamplingConfig(Frozen):
    """How to sample. The defaults are the reference's."""

    solver: Literal["res", "euler"] = "res"
    steps: PositiveInt = 35
    guidance: NonNegativeFloat = Field(
        default=7.0, description="g in cond + g · (cond - uncond); a usual scale of g + 1"
    )
    seed: int = Field(default=1, ge=0, lt=2**32)
    sigma_max: PositiveFloat = 80.0
    sigma_min: PositiveFloat = 0.002
    rho: PositiveFloat = 7.0

    def evaluations(self) -> int:
        """Evaluations of the network for one sample."""
        points = self.steps + 1 if self.solver == "res" else self.steps
        return points * (2 if self.guidance else 1)


def sampler_sigmas(points: int, sigma_max: float, sigma_min: float, rho: float) -> Tensor:
    """``points`` noise levels, fp64, from sigma_max down to sigma_min, evenly spaced in σ^(1/ρ)."""
    ramp = torch.linspace(0, 1, points, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (high + ramp * (low - high)) ** rho


def initial_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal fp32 from NumPy's legacy generator: the reference's noise for this seed."""
    values = np.random.RandomState(seed).standard_normal(shape)
    return torch.from_numpy(values.astype(np.float32))


def guided_denoiser(
    model: Network,
    conditions: Conditions,
    negative_text: Tensor | None,
    guidance: float,
    sigma_data: float = SIGMA_DATA,
) -> Denoiser:
    """D with guidance. ``negative_text`` is like the conditions' text, or None for zero rows.

    The two branches run one after the other: at the published sizes a batch of two is no faster
    and needs twice the memory.
    """
    unconditional = conditions.with_text(negative_text)

    def evaluate(x: Tensor, sigma: float) -> Tensor:
        level = torch.full((x.shape[0],), sigma, dtype=torch.float32, device=x.device)
        known = denoise(model, x, level, conditions, sigma_data)
        if not guidance:
            return known
        blank = denoise(model, x, level, unconditional, sigma_data)
        return known + guidance * (known - blank)

    return evaluate


@torch.no_grad()
def sample(
    evaluate: Denoiser, noise: Tensor, config: SamplingConfig, on_step: OnStep | None = None
) -> Tensor:
    """The clean latent (σ_data times a normalised one), fp32, shaped like ``noise``.

    ``noise`` is standard normal. ``on_step`` is called after each noise level.
    """
    tick = on_step or (lambda: None)
    levels = config.sigma_max, config.sigma_min, config.rho
    x = noise.double() * config.sigma_max
    if config.solver == "res":
        return _res(evaluate, x, sampler_sigmas(config.steps + 1, *levels).tolist(), tick)
    return _euler(evaluate, x, [*sampler_sigmas(config.steps, *levels).tolist(), 0.0], tick)


def _res(evaluate: Denoiser, x: Tensor, sigmas: list[float], tick: OnStep) -> Tensor:
    previous: tuple[Tensor, float] | None = None
    for sigma, following in pairwise(sigmas):
        clean = evaluate(x, sigma).double()
        x = _res_step(x, sigma, following, clean, previous)
        previous = (clean, sigma)
        tick()
    result = evaluate(x, sigmas[-1])
    tick()
    return result


def _res_step(
    x: Tensor, sigma: float, following: float, clean: Tensor, previous: tuple[Tensor, float] | None
) -> Tensor:
    """x at σ ``following``. With h the step in λ and D linear in λ through the two last values:

    e^-h x + (1 - e^-h) D + h² φ2(-h) / (λ_now - λ_before) · (D - D_before).
    """
    h = float(np.log(sigma / following))
    decay = following / sigma
    x = decay * x + (1 - decay) * clean
    if previous is None:
        return x
    before, sigma_before = previous
    # h² φ2(-h) = h - (1 - e^-h); expm1 keeps its digits for small steps
    gain = (h + float(np.expm1(-h))) / float(np.log(sigma_before / sigma))
    return x + gain * (clean - before)


def _euler(evaluate: Denoiser, x: Tensor, sigmas: list[float], tick: OnStep) -> Tensor:
    for sigma, following in pairwise(sigmas):
        slope = (x - evaluate(x, sigma).double()) / sigma
        x = x + (following - sigma) * slope
        tick()
    return x.float()
