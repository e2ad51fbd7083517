"""Settings of the stage: recipe, launcher, and the job's options."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from components.lib.contract import StageConfig, manifest_input, operational
from components.lib.stage import StageSpec
from components.training.launch.interface import (
    LaunchRequest,
)
from components.training.launch.kinds import LauncherName

SPEC = StageSpec(name="training", version="1", kind="training-run")


def _valid_job(given: dict[str, Any]) -> dict[str, Any]:
    """Refuse a slip in the job's options when the run is submitted, not after hours of encoding."""
    known = {"name": "x", "image": "x", "command": ("x",)}
    if set(given) & {"name", "command"}:
        raise ValueError("name and command are the stage's own")
    try:
        LaunchRequest.model_validate({**known, **given})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where}: {first['msg']}") from error
    return given


class TrainingConfig(StageConfig):
    """Settings of the stage."""

    checkpoint: str = manifest_input("Checkpoint manifest of the model to start from.")
    data: str = manifest_input("Latent data set (diffusion) or tokenizer data set manifest.")
    prompts: str | None = manifest_input("Prompt embeddings (diffusion).", default=None)
    vgg: str | None = manifest_input("VGG16 checkpoint (tokenizer).", default=None)
    factory: str = Field(
        default="cosmos_diffusion_7b_text2world_finetune",
        description="Recipe, by the name that the guides give to --factory.",
    )
    overrides: tuple[str, ...] = Field(
        default=(), description="The trainer's settings: trainer.max_steps=1000, …"
    )
    nproc: int = Field(
        default=0,
        ge=0,
        description="Processes on each node; 0: one per GPU, or 2 where there is none.",
    )
    nodes: int = Field(default=1, ge=1, description="Nodes (pods) of the training job.")
    launcher: LauncherName = operational(
        "process", "Where training runs: here (torchrun), or as a job on the cluster."
    )
    image: str = operational("", "Training image of a job; empty: the stage's own.")
    gpus_per_node: int = operational(8, "GPUs of each pod of a job.", ge=0)
    job: Annotated[dict[str, Any], AfterValidator(_valid_job)] = operational(
        {}, "More of a job: namespace, memory, queue, tolerations, … (see LaunchRequest)."
    )
    grace_seconds: int = operational(
        300, "Time for a checkpoint after SIGTERM, before the ranks are killed.", ge=1
    )


CONFIG = TrainingConfig
