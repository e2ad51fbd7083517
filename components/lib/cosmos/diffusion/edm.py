"""The EDM formulation: preconditioning, the training loss and the noise it needs.

The network F is wrapped as ``D(x; σ) = c_skip x + c_out F(c_in x, ¼ ln σ)``, an estimate of the
clean latent. Latents in data sets are normalised; the model works on ``σ_data`` times them.

The published loss is ``w(σ) (x0 - D)²`` with ``w = 1 / c_out²``. That equals the squared distance
of F to ``(σ x0 - σ_data² ε) / (σ_data √(σ² + σ_data²))``, which is what is computed here: it never
subtracts two nearly equal numbers, so it keeps its precision at small σ. Everything outside the
network is fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from components.lib.contract import Frozen
from components.lib.cosmos.conditions import Conditions, over_latent

#: The network F: (c_in x, c_noise [B], conditions) -> what D is made of.
Network = Callable[[Tensor, Tensor, Conditions], Tensor]

SIGMA_DATA = 0.5
#: Noise on the conditioning frames of Video2World, as in the reference's effective settings.
CONDITION_SIGMA = 1e-3


class Scaling(NamedTuple):
    """The four coefficients, each shaped like sigma."""

    skip: Tensor
    out: Tensor
    into: Tensor
    noise: Tensor


class NoiseConfig(Frozen):
    """ln σ of a training draw ~ N(mean, std²)."""

    mean: float = 0.0
    std: float = 1.0


def preconditioning(sigma: Tensor, sigma_data: float = SIGMA_DATA) -> Scaling:
    """c_skip, c_out, c_in and c_noise of these noise levels (> 0)."""
    total = sigma**2 + sigma_data**2
    return Scaling(
        skip=sigma_data**2 / total,
        out=sigma * sigma_data * total.rsqrt(),
        into=total.rsqrt(),
        noise=0.25 * sigma.log(),
    )


def loss_weight(sigma: Tensor, sigma_data: float = SIGMA_DATA) -> Tensor:
    """w(σ) of the published loss; equals 1 / c_out²."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def denoise(
    model: Network,
    x: Tensor,
    sigma: Tensor,
    conditions: Conditions,
    sigma_data: float = SIGMA_DATA,
) -> Tensor:
    """D(x; σ), fp32 [B, 16, T, H, W]. ``x`` is clean + σ · noise; ``sigma`` [B]."""
    scaling = preconditioning(_wide(sigma.float(), x), sigma_data)
    x = x.float()
    raw = model(scaling.into * x, scaling.noise.flatten(), conditions)
    return scaling.skip * x + scaling.out * raw.float()


def draw_sigma(count: int, generator: torch.Generator, config: NoiseConfig | None = None) -> Tensor:
    """``count`` noise levels, fp32 on the CPU, through the inverse normal CDF of uniform draws."""
    settings = config or NoiseConfig()
    tiny = torch.finfo(torch.float64).tiny
    uniform = torch.rand(count, generator=generator, dtype=torch.float64).clamp_min(tiny)
    return (settings.mean + settings.std * torch.special.ndtri(uniform)).exp().float()


def validation_sigmas(count: int, config: NoiseConfig | None = None) -> Tensor:
    """``count`` fixed noise levels, fp64 ascending, that stand for the training distribution.

    They are the medians of its equal parts, so a mean over them estimates the training loss.
    """
    settings = config or NoiseConfig()
    middles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return (settings.mean + settings.std * torch.special.ndtri(middles)).exp()


class EDMLoss(NamedTuple):
    """``loss``: scalar to minimise, fp32. ``per_sample`` [B], detached, for reports."""

    loss: Tensor
    per_sample: Tensor


def edm_loss(
    model: Network,
    latent: Tensor,
    sigma: Tensor,
    noise: Tensor,
    conditions: Conditions,
    sigma_data: float = SIGMA_DATA,
) -> EDMLoss:
    """The published training loss on normalised latents [B, 16, T, H, W].

    ``noise`` is standard normal, shaped like the latent; ``sigma`` [B]. The frames that a
    Video2World model is shown carry no loss, but count in the mean, as in the reference. A perfect
    guess of the mean scores about 1.
    """
    clean = sigma_data * latent.float()
    noise = noise.float()
    wide = _wide(sigma.float(), clean)
    scaling = preconditioning(wide, sigma_data)
    x = clean + wide * noise
    mask = None
    if conditions.shown_frames is not None:
        mask = over_latent(conditions.shown_frames, latent)
        x = show_condition(x, clean, noise, wide, mask, sigma_data)
    raw = model(scaling.into * x, scaling.noise.flatten(), conditions)
    root = (wide**2 + sigma_data**2).rsqrt()
    target = (wide * clean - sigma_data**2 * noise) * root / sigma_data
    error = (raw.float() - target) ** 2
    if mask is not None:
        error = error * (1 - mask)
    per_sample = error.flatten(1).mean(1)
    return EDMLoss(per_sample.mean(), per_sample.detach())


def show_condition(
    x: Tensor,
    clean: Tensor,
    noise: Tensor,
    sigma: Tensor,
    mask: Tensor,
    sigma_data: float = SIGMA_DATA,
) -> Tensor:
    """x_t whose masked frames hold the clean latent, barely noised.

    They are scaled so that after ``c_in`` of this σ the network sees them as at
    `CONDITION_SIGMA`. ``sigma`` broadcasts against x.
    """
    shown = clean + CONDITION_SIGMA * noise
    at = clean.new_tensor(CONDITION_SIGMA)
    ratio = preconditioning(at, sigma_data).into / preconditioning(sigma, sigma_data).into
    return mask * ratio * shown + (1 - mask) * x


def _wide(sigma: Tensor, like: Tensor) -> Tensor:
    return sigma.to(like.device).reshape(-1, *[1] * (like.dim() - 1))
