"""The tasks with which every post-training ends: train -> evaluate -> promote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kfp import dsl

from components import images
from components.evaluation.component import evaluation
from components.lib.environment import TRAIN_IMAGE
from components.promotion.component import promotion
from components.training.component import training
from pipelines import profiles
from pipelines.forms import Form
from pipelines.profiles import Profile, place


def train_and_judge(
    profile: Profile,
    form: Form,
    videos: dsl.PipelineTask,
    base: dsl.PipelineTask,
    data: Any,
    *,
    cached: bool,
    ledger: str | None,
    training_inputs: Mapping[str, Any],
    evaluation_inputs: Mapping[str, Any],
) -> None:
    """Train ``base`` on ``data``, evaluate, and ask the gate.

    ``ledger`` (or None) names the ledger that the videos of a promoted model are entered in; the
    two mappings hold the inputs that only one family of models has.
    """
    entered = {"videos": videos.outputs["videos"], "ledger": ledger} if ledger is not None else {}
    trained = training(
        storage_root=form.storage_root,
        factory=form.factory,
        launcher=form.launcher,
        checkpoint=base.outputs["checkpoint"],
        data=data,
        overrides=form.overrides,
        **training_inputs,
    ).set_display_name("train")
    place(
        trained,
        profile,
        profiles.LAUNCH,
        cached=cached,
        secrets=("wandb",),
        environment={TRAIN_IMAGE: images.TRAIN},
    )
    judged = evaluation(
        storage_root=form.storage_root,
        model_name=form.model_name,
        training=trained.outputs["run"],
        checkpoint=base.outputs["checkpoint"],
        data=data,
        overrides=form.overrides,
        **evaluation_inputs,
    ).set_display_name("evaluate")
    # it also measures the model in production, which another run may have changed
    place(judged, profile, profiles.EVALUATE, cached=False)
    decided = promotion(
        storage_root=form.storage_root,
        model_name=form.model_name,
        training=trained.outputs["run"],
        evaluation=judged.outputs["evaluated"],
        overrides=form.overrides,
        **entered,
    ).set_display_name("promote")
    place(decided, profile, profiles.PROMOTE, cached=False)
