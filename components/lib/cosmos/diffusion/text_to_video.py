"""Prompt to frames, one network in memory at a time.

The text encoder, the DiT and the tokenizer are loaded, used and dropped in turn, so the largest
of them decides the memory: the 7B model samples on one 80 GB GPU. The price is loading each again
for the next video; samplers that make many videos hold the parts themselves (`sample_latent`).
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from components.lib.contract import Frozen, Progress, UserError
from components.lib.cosmos.conditions import Conditions
from components.lib.cosmos.diffusion.sampling import (
    SamplingConfig,
    guided_denoiser,
    initial_noise,
    sample,
)
from components.lib.cosmos.dit.network import DiT
from components.lib.cosmos.inference import speed_up_tokenizer
from components.lib.cosmos.tokenizer.network import CosmosTokenizer, TokenizerConfig

Frames = npt.NDArray[np.uint8]


class VideoRequest(Frozen):
    """What to make. ``subject`` puts the reference's training phrase before the prompt."""

    prompt: str
    negative_prompt: str = ""
    subject: str = ""
    frames: int = Field(default=121, gt=0)
    height: int = Field(default=704, gt=0)
    width: int = Field(default=1280, gt=0)
    fps: PositiveFloat = 24.0
    sampling: SamplingConfig = SamplingConfig()

    @property
    def full_prompt(self) -> str:
        """The prompt as it is encoded."""
        return (
            f"A video of sks {self.subject}. {self.prompt}".strip() if self.subject else self.prompt
        )


def latent_shape(
    request: VideoRequest, config: TokenizerConfig, model: DiT
) -> tuple[int, int, int, int, int]:
    """[1, 16, T, H, W] for this request. UserError when a network cannot make that size."""
    frames, height, width = request.frames, request.height, request.width
    config.check_clip(frames, height, width)
    shape = config.latent_shape(frames, height, width)
    if shape[0] != model.config.latent_channels:
        raise UserError(
            f"The tokenizer has {shape[0]} latent channels, the diffusion model "
            f"{model.config.latent_channels}. Use the tokenizer that the model was trained with."
        )
    try:
        model.config.grid(*shape[1:])
    except ValueError as error:
        raise UserError(f"The diffusion model cannot make this video: {error}.") from error
    return (1, *shape)


def sample_latent(
    model: DiT,
    conditions: Conditions,
    negative_text: Tensor | None,
    shape: tuple[int, int, int, int, int],
    config: SamplingConfig,
    on_step: Callable[[], None] | None = None,
) -> Tensor:
    """A normalised latent of ``shape``, fp32 on the model's device.

    ``negative_text`` is what guidance leads away from: like the conditions' text, or None.
    """
    if model.config.condition_mask:
        raise UserError("A Video2World model needs frames to go on from; give a Text2World model.")
    text_dim = conditions.text.shape[-1]
    if text_dim != model.config.text_dim:
        raise UserError(
            f"The text embedding has {text_dim} numbers a token, the diffusion model takes "
            f"{model.config.text_dim}. Use the text encoder that the model was trained with."
        )
    device = model.affline_norm.weight.device
    noise = initial_noise(shape, config.seed).to(device)
    evaluate = guided_denoiser(
        model,
        conditions.to(device),
        None if negative_text is None else negative_text.to(device),
        config.guidance,
        model.config.sigma_data,
    )
    return sample(evaluate, noise, config, on_step) / model.config.sigma_data


@torch.no_grad()
def decode_frames(
    tokenizer: CosmosTokenizer, latent: Tensor, frames: int, tile: int | None = None
) -> Frames:
    """uint8 [T, H, W, 3] of one normalised latent [1, C, T', H', W']."""
    video = tokenizer.decode(tokenizer.denormalise(latent), frames=frames, tile=tile)
    pixels = ((video[0].float() + 1) / 2).clamp(0, 1) * 255
    return pixels.round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()


def make_video(
    request: VideoRequest,
    *,
    load_text: Callable[[], Any],
    load_model: Callable[[], DiT],
    load_tokenizer: Callable[[], CosmosTokenizer],
    progress: Progress,
    tile: int | None = None,
) -> Frames:
    """The frames of a request, uint8 [T, H, W, 3].

    ``load_text`` gives what `text.TextEncoder` is (or anything with its ``encode``); each loader
    is called once, and what it gave is freed before the next is called.
    """
    config = request.sampling
    prompts = [request.full_prompt, *([request.negative_prompt] if request.negative_prompt else [])]
    with progress.task("encoding the prompt", total=1):
        encoder = load_text()
        embeddings, _ = encoder.encode(prompts)
        del encoder
        _free()
    conditions = Conditions(text=embeddings[:1], fps=torch.tensor([request.fps]))
    negative = embeddings[1:2] if request.negative_prompt else None

    tokenizer = load_tokenizer()
    model = load_model()
    shape = latent_shape(request, tokenizer.config, model)
    tokenizer = tokenizer.cpu()
    device = model.affline_norm.weight.device
    levels = config.steps + (1 if config.solver == "res" else 0)
    with progress.task("denoising", total=levels, unit="steps") as task:
        latent = sample_latent(model, conditions, negative, shape, config, task.advance)
    del model
    _free()
    with progress.task("decoding", total=request.frames, unit="frames") as task:
        tokenizer = tokenizer.to(device)
        speed_up_tokenizer(tokenizer)
        frames = decode_frames(tokenizer, latent, request.frames, tile)
        task.advance(len(frames))
    return frames


class StoredEmbedding:
    """Stands in for the text encoder: one file that prompt_embedding wrote."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """The stored embedding [1, 512, D] and its length, whatever the prompt says."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if len(prompts) > 1:
            raise UserError("A stored embedding has no negative prompt; give the text encoder.")
        try:
            data = load_file(self.path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.path} is not a prompt embedding: {error}.") from error
        if "embedding" not in data:
            raise UserError(f"{self.path} is not a prompt embedding: it lacks 'embedding'.")
        length = data.get("length", torch.tensor(data["embedding"].shape[0]))
        return data["embedding"][None], length.reshape(1)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
