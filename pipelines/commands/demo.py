"""`cosmos-pipelines demo`: both pipelines, tiny models, a real clip."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from pipelines.catalog import preset_parameters
from pipelines.commands.options import WORKSPACE, Workspace
from pipelines.commands.output import show_local_run

PROMPTS = {
    "bigbuckbunny": "A cartoon rabbit stands in a green meadow under tall trees.",
    "bikes": "Cyclists ride along a street past parked bicycles.",
}


def command(
    videos: Annotated[
        str | None, typer.Option("--videos", help="Your own clips instead: folder, file or s3://….")
    ] = None,
    workspace: Workspace = WORKSPACE,
) -> None:
    """Post-train a tiny diffusion model, then a tiny tokenizer, on real video, on this machine.

    Takes a few minutes on two cores; a second run reuses everything.
    """
    from pipelines.local import run_local, storage, terminate_cleanly

    workspace = workspace.resolve()
    source = videos or str(demo_videos(workspace / "videos"))
    reports: list[Path] = []
    with terminate_cleanly(), storage(workspace, external=False) as env:
        for pipeline in ("diffusion", "tokenizer"):
            typer.echo(f"== {pipeline} ==")
            form = preset_parameters(pipeline, "tiny", workspace, source)
            run = run_local(pipeline, form, workspace, env)
            show_local_run(run)
            reports += run.reports
    typer.echo("Reports (open them in a browser):")
    for report in reports:
        typer.echo(f"  {report.resolve()}")


def demo_videos(folder: Path) -> Path:
    """Copy the demo clips and their prompts to a folder, each file whole or not at all."""
    from pipelines.catalog import demo_clips

    folder.mkdir(parents=True, exist_ok=True)
    for clip in demo_clips():
        target = folder / clip.name
        if not target.exists():
            partial = target.with_suffix(".part")
            shutil.copyfile(clip, partial)
            partial.rename(target)
        prompt = target.with_suffix(".txt")
        if not prompt.exists():
            partial = target.with_suffix(".part")
            partial.write_text(PROMPTS[clip.stem] + "\n")
            partial.rename(prompt)
    return folder
