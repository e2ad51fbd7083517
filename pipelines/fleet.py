"""fleet_retraining, the scheduled pipeline: only what is new, from the model in production.

discover what the ledger does not hold -> enough? -> start from production -> as in post-training
-> gate. The ledger, which is named like the model, takes the videos in when the model is promoted.
An exit task writes the run report whatever happened. Two forms, one per family of models.

No step is served from KFP's cache: a step that KFP skips leaves no note for the report, and the
stages find finished outputs in the store by themselves, in seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from kfp import dsl
from pydantic import Field

from components.checkpoint_fetch.component import checkpoint_fetch
from components.video_discovery.component import video_discovery
from pipelines import diffusion, forms, profiles, tokenizer
from pipelines.profiles import Profile, place
from pipelines.run_report import run_report

_MODEL_NAME = "Name of the model whose version in production is retrained, and its ledger."


class DiffusionRetraining(forms.Retraining, diffusion.DiffusionForm):
    """What retraining a Text2World model asks for."""

    checkpoint: str = Field(
        diffusion.CHECKPOINT, description="The DiT to start from while nothing is in production."
    )
    model_name: str = Field(diffusion.MODEL_NAME, description=_MODEL_NAME)


class TokenizerRetraining(forms.Retraining, tokenizer.TokenizerForm):
    """What retraining a tokenizer asks for."""

    checkpoint: str = Field(
        tokenizer.CHECKPOINT,
        description="The tokenizer to start from while nothing is in production.",
    )
    model_name: str = Field(tokenizer.MODEL_NAME, description=_MODEL_NAME)


Form = TypeVar("Form", DiffusionRetraining, TokenizerRetraining)


def build_diffusion(profile: Profile = profiles.CLUSTER) -> Any:
    """The pipeline of Text2World diffusion models for a profile."""

    def fleet_retraining(form: DiffusionRetraining) -> None:
        retraining(profile, form, diffusion.post_train, role="dit", prompt=form.prompt)

    return forms.pipeline(
        "fleet-retraining",
        "Retrain a Cosmos-1.0 Text2World model when new fleet video has arrived.",
        DiffusionRetraining,
        fleet_retraining,
    )


def build_tokenizer(profile: Profile = profiles.CLUSTER) -> Any:
    """The pipeline of tokenizers for a profile."""

    def fleet_retraining_tokenizer(form: TokenizerRetraining) -> None:
        retraining(profile, form, tokenizer.post_train, role="tokenizer", prompt="")

    return forms.pipeline(
        "fleet-retraining-tokenizer",
        "Retrain a Cosmos-1.0 video tokenizer when new fleet video has arrived.",
        TokenizerRetraining,
        fleet_retraining_tokenizer,
    )


def retraining(
    profile: Profile,
    form: Form,
    post_train: Callable[..., None],
    *,
    role: str,
    prompt: str,
) -> None:
    """The tasks of a retraining; ``post_train`` makes those of one family of models.

    ``role`` is that of the model to train, ``prompt`` that of videos which have none.
    """
    report = run_report(storage_root=form.storage_root, title=form.model_name)
    place(report, profile, profiles.PROMOTE, cached=False)
    with dsl.ExitHandler(report, name="retraining"):
        videos = video_discovery(
            storage_root=form.storage_root,
            source=form.videos,
            prompt=prompt,
            only_new=True,
            ledger=form.model_name,
            min_new_videos=form.min_new_videos,
            old_per_new=form.old_per_new,
            overrides=form.overrides,
        ).set_display_name("discover new videos")
        place(videos, profile, profiles.DISCOVER, cached=False, secrets=("huggingface",))
        with dsl.If(videos.outputs["Output"] == "train", name="enough new videos"):
            base = checkpoint_fetch(
                storage_root=form.storage_root,
                source=form.checkpoint,
                role=role,
                production_of=form.model_name,
                overrides=form.overrides,
            ).set_display_name("start from production")
            place(base, profile, profiles.FETCH, cached=False, secrets=("huggingface",))
            post_train(profile, form, videos, base, cached=False, ledger=form.model_name)
