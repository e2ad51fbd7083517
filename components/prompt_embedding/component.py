"""KFP declaration of the stage; the work is in `stage.py`."""

from kfp import dsl

from components import images


@dsl.component(base_image=images.PREPROCESS, install_kfp_package=False)
def prompt_embedding(
    storage_root: str,
    videos: dsl.Input[dsl.Dataset],
    checkpoint: dsl.Input[dsl.Model],
    embeddings: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    overrides: list[str] = [],  # noqa: B006 - KFP needs a literal default
) -> None:
    """Encode every distinct prompt once with the T5 encoder."""
    from components.harness.task import run_task

    run_task(
        "prompt_embedding",
        {"storage_root": storage_root},
        embeddings,
        inputs={"videos": videos, "checkpoint": checkpoint},
        metrics=metrics,
        overrides=overrides,
    )
