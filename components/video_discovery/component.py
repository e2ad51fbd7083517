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
    only_new: bool = False,
    ledger: str = "default",
    min_new_videos: int = 0,
    old_per_new: float = 0.0,
    overrides: list[str] = [],  # noqa: B006 - KFP needs a literal default
) -> str:
    """List and probe videos, or only new ones. Returns "train" or "wait". Never cached."""
    from components.harness.task import run_task

    found = run_task(
        "video_discovery",
        {
            "storage_root": storage_root,
            "source": source,
            "prompt": prompt,
            "only_new": only_new,
            "ledger": ledger,
            "min_new_videos": min_new_videos,
            "old_per_new": old_per_new,
        },
        videos,
        metrics=metrics,
        overrides=overrides,
    )
    return str(found.summary["next_step"])
