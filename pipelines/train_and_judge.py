"""The tasks with which every post-training ends: train -> evaluate -> promote."""

from collections.abc import Mapping
from typing import Any

from kfp import dsl

from components.evaluation.component import evaluation
from components.promotion.component import promotion
from components.training.component import training
from pipelines import images, profiles
from pipelines.profiles import Profile, place


def train_and_judge(
    profile: Profile,
    found: dsl.PipelineTask,
    base: dsl.PipelineTask,
    data: Any,
    *,
    storage_root: Any,
    factory: Any,
    launcher: Any,
    model_name: Any,
    overrides: Any,
    cached: bool,
    ledger: Any,
    training_inputs: Mapping[str, Any],
    evaluation_inputs: Mapping[str, Any],
) -> None:
    """Train ``base`` on ``data``, evaluate, and ask the gate.

    ``ledger`` (or None) names the ledger that the videos of a promoted model are entered in; the
    two mappings hold the inputs that only one family of models has.
    """
    entered = {"videos": found.outputs["videos"], "ledger": ledger} if ledger is not None else {}
    trained = training(
        storage_root=storage_root,
        factory=factory,
        launcher=launcher,
        checkpoint=base.outputs["checkpoint"],
        data=data,
        overrides=overrides,
        **training_inputs,
    ).set_display_name("train")
    place(
        trained,
        profile,
        profiles.LAUNCH,
        cached=cached,
        secrets=("wandb",),
        environment={"COSMOS_TRAIN_IMAGE": images.TRAIN},
    )
    judged = evaluation(
        storage_root=storage_root,
        model_name=model_name,
        training=trained.outputs["run"],
        checkpoint=base.outputs["checkpoint"],
        data=data,
        overrides=overrides,
        **evaluation_inputs,
    ).set_display_name("evaluate")
    # it also measures the model in production, which another run may have changed
    place(judged, profile, profiles.EVALUATE, cached=False)
    decided = promotion(
        storage_root=storage_root,
        model_name=model_name,
        training=trained.outputs["run"],
        evaluation=judged.outputs["evaluated"],
        overrides=overrides,
        **entered,
    ).set_display_name("promote")
    place(decided, profile, profiles.PROMOTE, cached=False)
