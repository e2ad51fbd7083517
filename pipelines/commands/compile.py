"""`cosmos-pipelines compile`: the YAML for the KFP UI and SDK."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from components.lib.contract import UserError
from pipelines import compiling
from pipelines.catalog import COMPILED, ENCODING, PIPELINES
from pipelines.commands.options import EncodePods, GpuType, Images
from pipelines.stage_list import README, with_stage_list


def command(
    names: Annotated[
        list[str] | None, typer.Argument(help="Pipelines to compile (default: all).")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the YAML.")] = COMPILED,
    image: Images = None,
    gpu_type: GpuType = None,
    encode_pods: EncodePods = 1,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail when a file is stale.")
    ] = False,
) -> None:
    """Compile the pipelines to YAML, or check that the committed files are up to date.

    In a checkout the README's list of stages is written, or checked, with the committed files.
    """
    selected = names or list(PIPELINES)
    images = compiling.image_overrides(image or [])
    stale = []
    for name in selected:
        pods = encode_pods if names or name in ENCODING else 1
        text = compiling.compile_pipeline(name, images, gpu_type, pods)
        if not _is_current(output / f"{name}.yaml", text, check):
            stale.append(str(output / f"{name}.yaml"))
    if output == COMPILED and README.is_file():
        text = with_stage_list(README.read_text())
        if not _is_current(README, text, check):
            stale.append(str(README))
    if stale:
        raise UserError(
            f"Out of date: {', '.join(stale)}. "
            "Run 'cosmos-pipelines compile' and commit the result."
        )
    if check:
        typer.echo(f"{len(selected)} compiled pipelines are up to date.")


def _is_current(path: Path, text: str, check: bool) -> bool:
    """Whether the file holds the text. Unless this is a check, it is made to."""
    if check:
        return path.is_file() and path.read_text() == text
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    typer.echo(f"wrote {path}")
    return True
