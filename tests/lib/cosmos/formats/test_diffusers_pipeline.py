"""Exported models sample in diffusers' own Cosmos pipeline, and the video is the one we make.

Transformer, scheduler, loop, guidance, decoder and the scaling of latents are diffusers' on the
other side. Left out are the text encoder (both sides get the same embeddings) and the content
filter, in whose place a module lets everything through.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLCosmos,
    CosmosTextToWorldPipeline,
    CosmosTransformer3DModel,
    EDMEulerScheduler,
)
from diffusers.models.transformers import transformer_cosmos

from components.lib.cosmos.conditions import Conditions
from components.lib.cosmos.diffusion.edm import SIGMA_DATA
from components.lib.cosmos.diffusion.sampling import (
    SamplingConfig,
    guided_denoiser,
    initial_noise,
    sample,
)
from components.lib.cosmos.diffusion.text_to_video import decode_frames
from components.lib.cosmos.formats import tiny
from components.lib.cosmos.formats.exporting import export_model
from components.lib.cosmos.model_folder import load_dit, load_tokenizer

FRAMES, HEIGHT, WIDTH, FPS = 17, 64, 96, 24


class LetsEverythingThrough(torch.nn.Module):
    """In the place of the content filter."""

    device = torch.device("cpu")

    def check_video_safety(self, frames: Any) -> Any:
        """The frames as they are."""
        return frames


@pytest.fixture
def pipeline(
    canonical: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> CosmosTextToWorldPipeline:
    """diffusers' pipeline around the two exported models."""
    # Its one use of torchvision, which does not load beside the CPU torch.
    resize = lambda mask, size, interpolation: torch.nn.functional.interpolate(mask, size)  # noqa: E731
    stand_in = SimpleNamespace(
        functional=SimpleNamespace(resize=resize),
        InterpolationMode=SimpleNamespace(NEAREST="nearest"),
    )
    monkeypatch.setattr(transformer_cosmos, "transforms", stand_in, raising=False)
    for name in (tiny.DIT_FOLDER, tiny.CV_FOLDER):
        export_model(canonical / name, tmp_path / name, "diffusers", dtype="float32")
    made = CosmosTextToWorldPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=CosmosTransformer3DModel.from_pretrained(tmp_path / tiny.DIT_FOLDER),
        vae=AutoencoderKLCosmos.from_pretrained(tmp_path / tiny.CV_FOLDER),
        scheduler=EDMEulerScheduler(sigma_max=80.0, sigma_min=0.002, sigma_data=0.5, rho=7.0),
        safety_checker=LetsEverythingThrough(),
    )
    made.set_progress_bar_config(disable=True)
    return made


def test_a_whole_run_from_noise_to_frames_equals_diffusers_pipeline(
    pipeline: CosmosTextToWorldPipeline, canonical: Path
) -> None:
    dit = load_dit(canonical / tiny.DIT_FOLDER, dtype=torch.float32)
    tokenizer = load_tokenizer(canonical / tiny.CV_FOLDER, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    text, negative = (torch.randn(1, 32, 64, generator=generator) for _ in range(2))
    config = SamplingConfig(solver="euler", steps=12, guidance=3.0)
    noise = initial_noise((1, 16, 3, HEIGHT // 8, WIDTH // 8), config.seed)

    conditions = Conditions(text, torch.tensor([float(FPS)]))
    evaluate = guided_denoiser(dit, conditions, negative, config.guidance)
    latent = sample(evaluate, noise, config)
    frames = decode_frames(tokenizer, latent / SIGMA_DATA, FRAMES)

    request = {
        "prompt_embeds": text, "negative_prompt_embeds": negative, "latents": noise,
        "height": HEIGHT, "width": WIDTH, "num_frames": FRAMES, "fps": FPS,
        "num_inference_steps": config.steps, "guidance_scale": config.guidance,
    }  # fmt: skip
    theirs = pipeline(**request, output_type="latent").frames
    assert float(latent.abs().max()) > 0.1
    assert float((latent - theirs).abs().max()) < 1e-4
    shown = pipeline(**request, output_type="np").frames[0]
    assert shown.shape == frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
    # The pipeline rounds to bytes downwards for its content filter, ours to the nearest.
    assert int(np.abs(frames.astype(int) - np.round(shown * 255).astype(int)).max()) <= 1
