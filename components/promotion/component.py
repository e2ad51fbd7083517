"""KFP declaration of the stage; the work is in `stage.py`."""

from kfp import dsl

from components import images


@dsl.component(base_image=images.DATA, install_kfp_package=False)
def promotion(
    storage_root: str,
    model_name: str,
    training: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    decision: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    videos: dsl.Input[dsl.Dataset] = None,
    ledger: str = "",
    overrides: list[str] = [],  # noqa: B006 - KFP needs a literal default
) -> None:
    """Register the model as a version and make it production when the gate lets it through."""
    from components.harness.task import run_task

    run_task(
        "promotion",
        {"storage_root": storage_root, "model_name": model_name, "ledger": ledger},
        decision,
        inputs={"training": training, "evaluation": evaluation, "videos": videos},
        metrics=metrics,
        overrides=overrides,
    )
