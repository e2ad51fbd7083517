"""tokenizer_post_training: fetch -> discover -> shard -> train -> evaluate -> promote."""

from __future__ import annotations

from typing import Any

from kfp import dsl
from pydantic import Field

from components.checkpoint_fetch.component import checkpoint_fetch
from components.tar_sharding.component import tar_sharding
from components.video_discovery.component import video_discovery
from pipelines import forms, profiles
from pipelines.profiles import Profile, place
from pipelines.train_and_judge import train_and_judge

CHECKPOINT = "hf://nvidia/Cosmos-1.0-Tokenizer-CV8x8x8"
MODEL_NAME = "cosmos-tokenizer-cv8x8x8"


class TokenizerForm(forms.Form):
    """What post-training a tokenizer asks for."""

    checkpoint: str = Field(
        CHECKPOINT,
        description="The tokenizer to start from: hf://owner/name[@revision], s3://… or file://….",
    )
    vgg_checkpoint: str = Field(
        "hf://timm/vgg16.tv_in1k",
        description="VGG16 weights of the perceptual loss, in the same forms.",
    )
    factory: str = Field(
        "train_tokenizer", description="Recipe: train_tokenizer or tiny_tokenizer."
    )
    model_name: str = Field(MODEL_NAME, description="Name under which versions are registered.")


def build(profile: Profile = profiles.CLUSTER) -> Any:
    """The pipeline for a profile."""

    def tokenizer_post_training(form: TokenizerForm) -> None:
        base = checkpoint_fetch(
            storage_root=form.storage_root,
            source=form.checkpoint,
            role="tokenizer",
            overrides=form.overrides,
        ).set_display_name("fetch tokenizer")
        place(base, profile, profiles.FETCH, secrets=("huggingface",))
        videos = video_discovery(
            storage_root=form.storage_root,
            source=form.videos,
            prompt="",
            overrides=form.overrides,
        ).set_display_name("discover videos")
        place(videos, profile, profiles.DISCOVER, cached=False, secrets=("huggingface",))
        post_train(profile, form, videos, base)

    return forms.pipeline(
        "tokenizer-post-training",
        "Post-train a Cosmos-1.0 video tokenizer on fleet video.",
        TokenizerForm,
        tokenizer_post_training,
    )


def post_train(
    profile: Profile,
    form: TokenizerForm,
    videos: dsl.PipelineTask,
    base: dsl.PipelineTask,
    *,
    cached: bool = True,
    ledger: str | None = None,
) -> None:
    """The tasks from discovered videos and a tokenizer to start from up to promotion.

    ``ledger`` names the ledger that the videos of a promoted model are entered in.
    """
    vgg = checkpoint_fetch(
        storage_root=form.storage_root,
        source=form.vgg_checkpoint,
        role="vgg16",
        overrides=form.overrides,
    ).set_display_name("fetch VGG16")
    place(vgg, profile, profiles.FETCH, cached=cached, secrets=("huggingface",))
    shards = tar_sharding(
        storage_root=form.storage_root,
        videos=videos.outputs["videos"],
        overrides=form.overrides,
    ).set_display_name("shard videos")
    place(shards, profile, profiles.SHARD, cached=cached)
    train_and_judge(
        profile,
        form,
        videos,
        base,
        shards.outputs["dataset"],
        cached=cached,
        ledger=ledger,
        training_inputs={"vgg": vgg.outputs["checkpoint"]},
        evaluation_inputs={},
    )
