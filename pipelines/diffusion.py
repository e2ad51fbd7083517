"""diffusion_post_training: fetch -> discover -> embed -> encode latents -> train -> judge."""

from __future__ import annotations

from typing import Any

from kfp import dsl
from pydantic import Field

from components.checkpoint_fetch.component import checkpoint_fetch
from components.latent_encoding.component import latent_encoding, latent_encoding_part
from components.prompt_embedding.component import prompt_embedding
from components.video_discovery.component import video_discovery
from pipelines import forms, profiles
from pipelines.profiles import Profile, place
from pipelines.train_and_judge import train_and_judge

CHECKPOINT = "hf://nvidia/Cosmos-1.0-Diffusion-7B-Text2World"
MODEL_NAME = "cosmos-diffusion-7b-text2world"


class DiffusionForm(forms.Form):
    """What post-training a Text2World model asks for."""

    prompt: str = Field(
        "A video of sks.",
        description="Prompt of videos that have none of their own (sidecar .txt or .json).",
    )
    checkpoint: str = Field(
        CHECKPOINT,
        description="The DiT to start from: hf://owner/name[@revision], s3://… or file://….",
    )
    tokenizer_checkpoint: str = Field(
        "hf://nvidia/Cosmos-1.0-Tokenizer-CV8x8x8",
        description="The continuous tokenizer that makes the latents.",
    )
    text_encoder_checkpoint: str = Field(
        "hf://google-t5/t5-11b", description="The T5 encoder of the prompts."
    )
    frames: int = Field(121, description="Frames of a clip, 8k+1.")
    height: int = Field(704, description="Height of a clip in pixels, a multiple of 16.")
    width: int = Field(1280, description="Width of a clip in pixels, a multiple of 16.")
    factory: str = Field(
        "cosmos_diffusion_7b_text2world_finetune",
        description="Recipe: cosmos_diffusion_{7b,14b}_text2world_finetune or tiny_diffusion.",
    )
    model_name: str = Field(MODEL_NAME, description="Name under which versions are registered.")


def build(profile: Profile = profiles.CLUSTER) -> Any:
    """The pipeline for a profile."""

    def diffusion_post_training(form: DiffusionForm) -> None:
        base = checkpoint_fetch(
            storage_root=form.storage_root,
            source=form.checkpoint,
            role="dit",
            overrides=form.overrides,
        ).set_display_name("fetch diffusion model")
        place(base, profile, profiles.FETCH, secrets=("huggingface",))
        videos = video_discovery(
            storage_root=form.storage_root,
            source=form.videos,
            prompt=form.prompt,
            overrides=form.overrides,
        ).set_display_name("discover videos")
        place(videos, profile, profiles.DISCOVER, cached=False, secrets=("huggingface",))
        post_train(profile, form, videos, base)

    return forms.pipeline(
        "diffusion-post-training",
        "Post-train a Cosmos-1.0 Text2World diffusion model on fleet video.",
        DiffusionForm,
        diffusion_post_training,
    )


def post_train(
    profile: Profile,
    form: DiffusionForm,
    videos: dsl.PipelineTask,
    base: dsl.PipelineTask,
    *,
    cached: bool = True,
    ledger: str | None = None,
) -> None:
    """The tasks from discovered videos and a model to start from up to promotion.

    ``ledger`` names the ledger that the videos of a promoted model are entered in.
    """
    tokenizer = checkpoint_fetch(
        storage_root=form.storage_root,
        source=form.tokenizer_checkpoint,
        role="tokenizer",
        overrides=form.overrides,
    ).set_display_name("fetch tokenizer")
    place(tokenizer, profile, profiles.FETCH, cached=cached, secrets=("huggingface",))
    text_encoder = checkpoint_fetch(
        storage_root=form.storage_root,
        source=form.text_encoder_checkpoint,
        role="t5",
        overrides=form.overrides,
    ).set_display_name("fetch T5")
    place(text_encoder, profile, profiles.FETCH, cached=cached, secrets=("huggingface",))
    embedded = prompt_embedding(
        storage_root=form.storage_root,
        videos=videos.outputs["videos"],
        checkpoint=text_encoder.outputs["checkpoint"],
        overrides=form.overrides,
    ).set_display_name("embed prompts")
    place(embedded, profile, profiles.EMBED, cached=cached)
    # The latents wait for the prompts although shards, the usual layout, hold no text: it is an
    # override that chooses the guide's layout, and by then the graph is fixed. The price is T5's
    # minutes, once for each set of prompts.
    encoding = {
        "storage_root": form.storage_root,
        "videos": videos.outputs["videos"],
        "checkpoint": tokenizer.outputs["checkpoint"],
        "prompts": embedded.outputs["embeddings"],
        "frames": form.frames,
        "height": form.height,
        "width": form.width,
        "overrides": form.overrides,
    }
    latents = latent_encoding(**encoding).set_display_name("encode latents")
    # after several pods it finds their shards and writes the manifest; it asks for a GPU all the
    # same, because it is also what makes a shard again whose decoder crashed
    place(latents, profile, profiles.ENCODE, cached=cached)
    if profile.encode_pods > 1:
        numbers = list(range(profile.encode_pods))
        with dsl.ParallelFor(numbers, name="parts of the latents") as index:
            part = latent_encoding_part(
                part_index=index, part_count=profile.encode_pods, **encoding
            ).set_display_name("encode a part")
            place(part, profile, profiles.ENCODE, cached=cached)
        latents.after(part)
    prompts = {"prompts": embedded.outputs["embeddings"]}
    train_and_judge(
        profile,
        form,
        videos,
        base,
        latents.outputs["latents"],
        cached=cached,
        ledger=ledger,
        training_inputs=prompts,
        evaluation_inputs=prompts,
    )
