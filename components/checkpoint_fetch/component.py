"""KFP declaration of the stage; the work is in `stage.py`."""

from kfp import dsl

from components import images


@dsl.component(base_image=images.DATA, install_kfp_package=False)
def checkpoint_fetch(
    storage_root: str,
    source: str,
    role: str,
    checkpoint: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    production_of: str = "",
    overrides: list[str] = [],  # noqa: B006 - KFP needs a literal default
) -> None:
    """Fetch a checkpoint (hf://, s3:// or file://), or take a model's version in production."""
    from components.harness.task import run_task

    run_task(
        "checkpoint_fetch",
        {
            "storage_root": storage_root,
            "source": source,
            "role": role,
            "production_of": production_of,
        },
        checkpoint,
        metrics=metrics,
        overrides=overrides,
    )
