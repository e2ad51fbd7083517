"""Settings of the stage: which prompts, which arithmetic."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from components.lib.contract import StageConfig, manifest_input, operational
from components.lib.stage import StageSpec

SPEC = StageSpec(name="prompt_embedding", version="1", kind="prompt-embeddings")


class PromptEmbeddingConfig(StageConfig):
    """Settings of the stage."""

    videos: str = manifest_input("Video manifest of video_discovery.")
    checkpoint: str = manifest_input("T5 checkpoint manifest of checkpoint_fetch.")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto",
        description="Arithmetic of the encoder; 'auto' is bfloat16 where the device has it. "
        "Embeddings are stored as bfloat16 always.",
    )
    empty_prompt: bool = Field(
        False, description="Also embed the empty prompt, for guidance without a negative prompt."
    )
    negative_prompt: str | None = Field(
        None, description="Also embed this prompt, for guidance at sampling time."
    )
    extra_prompts: tuple[str, ...] = Field(
        (), description="Also embed these prompts, for example those to sample with afterwards."
    )
    device: str = operational("auto", "'auto' (a GPU when there is one), 'cpu' or 'cuda:N'.")
    max_tokens: int = operational(
        16_384, "Padded tokens in one forward pass: 32 prompts of 512 tokens.", ge=512
    )
    transfers: int = operational(8, "Uploads at the same time.", ge=1, le=64)


CONFIG = PromptEmbeddingConfig
