"""Settings of the stage: what is compared, on how much, for both families."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from components.lib.contract import StageConfig, manifest_input, operational
from components.lib.stage import StageSpec

SPEC = StageSpec(name="evaluation", version="1", kind="evaluation")


class EvaluationConfig(StageConfig):
    """Settings of the stage."""

    training: str = manifest_input("Manifest of the training run.")
    checkpoint: str = manifest_input("Checkpoint manifest of the model the run started from.")
    data: str = manifest_input("Manifest of the data set; its validation split is measured on.")
    prompts: str = manifest_input("Prompt embeddings (diffusion).", default="")
    old_data: str = manifest_input(
        "A second data set, of older video, whose validation split must not get worse.", default=""
    )
    vgg: str = manifest_input(
        "VGG16 checkpoint for the perceptual distance (tokenizers). Empty: that of the training.",
        default="",
    )
    model_name: str = Field(
        default="", description="Also measure the version of this model that is in production."
    )
    models_root: str = operational("", "Where models are kept. Empty: <storage_root>/models.")
    weights: Literal["model", "model_ema"] = Field(
        default="model", description="Which weights of the run are judged and promoted."
    )
    max_clips: int = Field(
        default=64, ge=1, description="At most this many clips or videos of each set."
    )
    seed: int = Field(default=0, description="Decides the fixed noise.")
    sigmas: int = Field(
        default=8, ge=3, le=64, description="Diffusion: noise levels of the fixed grid."
    )
    noise_draws: int = Field(default=1, ge=1, description="Diffusion: noises per clip and level.")
    samples: int = Field(
        default=1, ge=0, le=16, description="Diffusion: videos to make from noise with each model."
    )
    sample_steps: int = Field(default=20, ge=2, le=1000, description="Diffusion: steps of a video.")
    guidance: float = Field(default=7.0, ge=0, description="Diffusion: guidance of made videos.")
    frames: int = Field(default=33, ge=1, description="Tokenizer: frames taken from each video.")
    crop: int = Field(
        default=256,
        ge=0,
        description="Tokenizer: largest side of the centre crop; 0: whole picture.",
    )
    shown: int = Field(default=2, ge=0, le=16, description="Clips that are shown as pictures.")
    device: str = operational("auto", "'auto' (a GPU when there is one), 'cpu' or 'cuda:N'.")


CONFIG = EvaluationConfig
