"""Settings of the stage: which checkpoint, and what it is for."""

from __future__ import annotations

from pydantic import Field

from components.lib.contract import StageConfig, operational
from components.lib.cosmos.families import FamilyName, Variant
from components.lib.cosmos.formats.text_encoder import TextDtype
from components.lib.stage import StageSpec

SPEC = StageSpec(name="checkpoint_fetch", version="1", kind="checkpoint")


class CheckpointFetchConfig(StageConfig):
    """Which checkpoint to fetch and what it is for."""

    source: str = Field(
        description="hf://owner/name[@revision], s3://bucket/prefix, or file:///folder."
    )
    role: FamilyName = Field(description="What the checkpoint is: dit, tokenizer, t5, or vgg16.")
    model: str = Field(
        default="",
        description="Name to give the model; empty keeps the one that the checkpoint tells.",
    )
    variant: Variant = Field(
        default="auto",
        description="Which of the forms in a repository to take: model.pt, nemo, diffusers, jit, "
        "canonical; auto takes the first that is there, in this order (tokenizer: jit first).",
    )
    text_dtype: TextDtype = Field(
        default="bfloat16", description="Dtype of the stored T5 encoder: bfloat16 or float32."
    )
    production_of: str = Field(
        default="",
        description="Take this model's version in production; the source serves while there is "
        "none.",
    )
    models_root: str = operational("", "Where models are kept. Empty: <storage_root>/models.")
    workers: int = operational(8, "Parallel downloads.", ge=1, le=64)


CONFIG = CheckpointFetchConfig
