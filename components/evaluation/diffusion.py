"""Held-out loss of a diffusion model on fixed noise and a fixed grid of noise levels.

Training loss of a diffusion model is mostly the luck of the draw: sigma and noise move it more
than training does. Here every clip is noised with the same noise at the same sigmas for every
model, so two models differ by nothing but their weights. The sigmas are the medians of equal
parts of the training distribution, so their mean estimates the training loss without text dropout.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from components.evaluation.held_out import LatentClip
from components.lib.contract import Progress
from components.lib.cosmos.conditions import Conditions, leading_frames
from components.lib.cosmos.diffusion.edm import (
    SIGMA_DATA,
    NoiseConfig,
    denoise,
    edm_loss,
    validation_sigmas,
)
from components.lib.report.scores import ClipScore
from components.lib.shards.prompts import PromptSource

BANDS = ("low", "middle", "high")
SHOWN_SIGMA = 1.0


class NoiseGrid(NamedTuple):
    """Noise levels, ascending, and how many noises each clip gets at each of them."""

    sigmas: list[float]
    draws: int
    seed: int

    def band(self, index: int) -> str:
        """Which third of the grid a level is in."""
        return BANDS[index * len(BANDS) // len(self.sigmas)]


def noise_grid(levels: int, draws: int, seed: int, noise: NoiseConfig | None = None) -> NoiseGrid:
    """The grid for a training distribution of ln(sigma)."""
    return NoiseGrid(validation_sigmas(levels, noise).tolist(), draws, seed)


def fixed_noise(clip: LatentClip, level: int, draw: int, seed: int) -> Tensor:
    """Standard normal noise, decided by the clip's content and place and nothing else."""
    name = f"{seed}:{clip.info.video_sha256}:{clip.info.start_frame}:{level}:{draw}"
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7])
    generator = torch.Generator().manual_seed(number)
    return torch.randn(clip.latent.shape, generator=generator)


def measure(
    model: Any,
    clips: Iterable[LatentClip],
    prompts: PromptSource | None,
    grid: NoiseGrid,
    device: str,
    progress: Progress,
    total: int,
    what: str,
) -> list[ClipScore]:
    """Loss of each clip: ``loss``, per level ``loss_sigma_…`` and per band ``loss_band_…``."""
    scores = []
    with torch.inference_mode(), progress.task(what, total, "clips") as task:
        for clip in clips:
            conditions = conditions_of(clip, prompts, model, shown=1).to(device)
            losses = [
                sum(
                    _loss(
                        model,
                        clip,
                        conditions,
                        sigma,
                        fixed_noise(clip, level, draw, grid.seed),
                        device,
                    )
                    for draw in range(grid.draws)
                )
                / grid.draws
                for level, sigma in enumerate(grid.sigmas)
            ]
            scores.append(_score(clip, grid, losses))
            task.advance()
    return scores


def _loss(
    model: Any,
    clip: LatentClip,
    conditions: Conditions,
    sigma: float,
    noise: Tensor,
    device: str,
) -> float:
    result = edm_loss(
        model,
        clip.latent[None].to(device),
        torch.tensor([sigma], device=device),
        noise[None].to(device),
        conditions,
        model.config.sigma_data,
    )
    return float(result.loss)


def _score(clip: LatentClip, grid: NoiseGrid, losses: Sequence[float]) -> ClipScore:
    values = {"loss": math.fsum(losses) / len(losses)}
    for level, sigma in enumerate(grid.sigmas):
        values[f"loss_sigma_{sigma:.3g}"] = losses[level]
    for band in BANDS:
        inside = [loss for level, loss in enumerate(losses) if grid.band(level) == band]
        if inside:
            values[f"loss_band_{band}"] = math.fsum(inside) / len(inside)
    return ClipScore(
        video=clip.info.video,
        sha256=clip.info.video_sha256,
        drive=clip.info.drive or "",
        clip=clip.key,
        values=values,
    )


def text_of(clip: LatentClip, prompts: PromptSource | None, model: Any) -> Tensor:
    """The clip's text embedding [1, 512, D]; zeros, as in unconditional training, without one."""
    if prompts is None and clip.text is not None:
        return clip.text[None]
    if prompts is None or clip.info.prompt_sha256 is None:
        return torch.zeros(1, model.config.text_tokens, model.config.text_dim)
    return prompts.embedding(clip.info.prompt_sha256)[None]


def conditions_of(
    clip: LatentClip, prompts: PromptSource | None, model: Any, shown: int
) -> Conditions:
    """What the model is shown with a clip; ``shown`` leading latent frames where it takes any."""
    rows = {name: tensor[None] for name, tensor in clip.conditions.items()}
    if model.config.condition_mask:
        rows["shown_frames"] = leading_frames(torch.tensor([shown]), clip.latent.shape[1])
    text, fps = text_of(clip, prompts, model), torch.tensor([clip.info.fps])
    return Conditions.of_batch({**rows, "text": text, "fps": fps})


def denoised(
    model: Any, clip: LatentClip, prompts: PromptSource | None, seed: int, device: str
) -> tuple[Tensor, Tensor]:
    """(noised, the model's guess of the clean latent), normalised [C, T, H, W], at sigma 1."""
    sigma_data = getattr(model.config, "sigma_data", SIGMA_DATA)
    clean = sigma_data * clip.latent[None].to(device)
    noised = clean + SHOWN_SIGMA * fixed_noise(clip, 0, 0, seed)[None].to(device)
    with torch.inference_mode():
        guess = denoise(
            model,
            noised,
            torch.tensor([SHOWN_SIGMA], device=device),
            conditions_of(clip, prompts, model, shown=0).to(device),
            sigma_data,
        )
    return noised[0].cpu() / sigma_data, guess[0].float().cpu() / sigma_data


PATCH = 4


def patch_vectors(latent: Tensor) -> Tensor:
    """Mean of every 4 x 4 patch of a latent [C, T, H, W], as vectors [N, C]: the features of the
    Frechet distance of latent patches."""
    pooled = torch.nn.functional.avg_pool3d(latent.float(), (1, PATCH, PATCH), ceil_mode=True)
    return pooled.flatten(1).T


def sampled(
    model: Any,
    clip: LatentClip,
    prompts: PromptSource | None,
    steps: int,
    guidance: float,
    seed: int,
    device: str,
) -> Tensor:
    """A normalised latent made from noise for the clip's prompt, shaped like the clip's."""
    from components.lib.cosmos.diffusion.sampling import SamplingConfig
    from components.lib.cosmos.diffusion.text_to_video import sample_latent

    channels, frames, height, width = clip.latent.shape
    with torch.inference_mode():
        latent = sample_latent(
            model,
            conditions_of(clip, prompts, model, shown=0),
            None,
            (1, channels, frames, height, width),
            SamplingConfig(steps=steps, guidance=guidance, seed=seed),
        )
    return latent[0].float().cpu()
