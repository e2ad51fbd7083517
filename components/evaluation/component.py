"""KFP declaration of the stage; the work is in `stage.py`."""

from kfp import dsl

from components import images


@dsl.component(base_image=images.PREPROCESS, install_kfp_package=False)
def evaluation(
    storage_root: str,
    model_name: str,
    training: dsl.Input[dsl.Model],
    checkpoint: dsl.Input[dsl.Model],
    data: dsl.Input[dsl.Dataset],
    evaluated: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    prompts: dsl.Input[dsl.Dataset] = None,
    overrides: list[str] = [],  # noqa: B006 - KFP needs a literal default
) -> None:
    """Measure trained model, base and production on held-out videos; write the report."""
    from components.harness.task import run_task

    run_task(
        "evaluation",
        {"storage_root": storage_root, "model_name": model_name},
        evaluated,
        inputs={
            "training": training,
            "checkpoint": checkpoint,
            "data": data,
            "prompts": prompts,
        },
        metrics=metrics,
        html=report,
        markdown=summary,
        overrides=overrides,
    )
