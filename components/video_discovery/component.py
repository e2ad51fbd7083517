"""KFP declaration of the stage; the work is in `stage.py`."""

from kfp import dsl

from components import images


@dsl.component(base_image=images.DATA, install_kfp_package=False)
def video_discovery(
    storage_root: str,
    source: str,
    prompt: str,
    videos: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    overrides: list[str] = [],  # noqa: B006 - KFP needs a literal default
) -> None:
    """List and probe the videos under a folder, bucket prefix or data set. Never cached."""
    from components.lib.task import run_task

    run_task(
        "video_discovery",
        {"storage_root": storage_root, "source": source, "prompt": prompt},
        videos,
        metrics=metrics,
        overrides=overrides,
    )
