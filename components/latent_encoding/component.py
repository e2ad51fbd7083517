"""KFP declaration of the stage; the work is in `stage.py`."""

from kfp import dsl

from components import images


@dsl.component(base_image=images.PREPROCESS, install_kfp_package=False)
def latent_encoding(
    storage_root: str,
    videos: dsl.Input[dsl.Dataset],
    checkpoint: dsl.Input[dsl.Model],
    prompts: dsl.Input[dsl.Dataset],
    frames: int,
    height: int,
    width: int,
    latents: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    overrides: list[str] = [],  # noqa: B006 - KFP needs a literal default
) -> None:
    """Cut clips from the videos and encode them to latents with the tokenizer."""
    from components.harness.task import run_task

    run_task(
        "latent_encoding",
        {"storage_root": storage_root, "frames": frames, "height": height, "width": width},
        latents,
        inputs={"videos": videos, "checkpoint": checkpoint, "prompts": prompts},
        metrics=metrics,
        overrides=overrides,
    )


@dsl.component(base_image=images.PREPROCESS, install_kfp_package=False)
def latent_encoding_part(
    storage_root: str,
    videos: dsl.Input[dsl.Dataset],
    checkpoint: dsl.Input[dsl.Model],
    prompts: dsl.Input[dsl.Dataset],
    frames: int,
    height: int,
    width: int,
    part_index: int,
    part_count: int,
    part: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    overrides: list[str] = [],  # noqa: B006 - KFP needs a literal default
) -> None:
    """Encode one part of the shards; latent_encoding with the same settings finds them."""
    from components.harness.task import run_task

    run_task(
        "latent_encoding",
        {
            "storage_root": storage_root,
            "frames": frames,
            "height": height,
            "width": width,
            "part_index": part_index,
            "part_count": part_count,
        },
        part,
        inputs={"videos": videos, "checkpoint": checkpoint, "prompts": prompts},
        metrics=metrics,
        overrides=overrides,
    )
