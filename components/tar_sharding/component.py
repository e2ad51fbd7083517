"""KFP declaration of the stage; the work is in `stage.py`."""

from kfp import dsl

from components import images


@dsl.component(base_image=images.DATA, install_kfp_package=False)
def tar_sharding(
    storage_root: str,
    videos: dsl.Input[dsl.Dataset],
    dataset: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    overrides: list[str] = [],  # noqa: B006 - KFP needs a literal default
) -> None:
    """Pack videos into tar shards with the index that megatron-energon reads."""
    from components.harness.task import run_task

    run_task(
        "tar_sharding",
        {"storage_root": storage_root},
        dataset,
        inputs={"videos": videos},
        metrics=metrics,
        overrides=overrides,
    )
