"""`cosmos-pipelines compile`: the YAML for the KFP UI and SDK."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from components.lib.contract import UserError
from pipelines import compiling
from pipelines.catalog import COMPILED, ENCODING, PIPELINES
from pipelines.commands.options import EncodePods, GpuType, Images


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
    """Compile the pipelines to YAML, or check that the committed files are up to date."""
    selected = names or list(PIPELINES)
    images = compiling.image_overrides(image or [])
    stale = []
    for name in selected:
        pods = encode_pods if names or name in ENCODING else 1
        text = compiling.compile_pipeline(name, images, gpu_type, pods)
        target = output / f"{name}.yaml"
        if check:
            if not target.is_file() or target.read_text() != text:
                stale.append(str(target))
            continue
        output.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        typer.echo(f"wrote {target}")
    if stale:
        raise UserError(
            f"Out of date: {', '.join(stale)}. "
            "Run 'cosmos-pipelines compile' and commit the result."
        )
    if check:
        typer.echo(f"{len(selected)} compiled pipelines are up to date.")
