"""KFP declaration of the stage; the work is in `stage.py`."""

from kfp import dsl

from components import images


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def training(
    storage_root: str,
    factory: str,
    checkpoint: dsl.Input[dsl.Model],
    data: dsl.Input[dsl.Dataset],
    run: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    launcher: str = "process",
    prompts: dsl.Input[dsl.Dataset] = None,
    vgg: dsl.Input[dsl.Model] = None,
    overrides: list[str] = [],  # noqa: B006 - KFP needs a literal default
) -> None:
    """Post-train on many processes: torchrun in place, or a training job on the cluster."""
    from components.harness.task import run_task

    run_task(
        "training",
        {"storage_root": storage_root, "factory": factory, "launcher": launcher},
        run,
        inputs={"checkpoint": checkpoint, "data": data, "prompts": prompts, "vgg": vgg},
        metrics=metrics,
        overrides=overrides,
    )
