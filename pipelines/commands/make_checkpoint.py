"""`cosmos-pipelines make-checkpoint`: small checkpoints in the official layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from components.lib.contract import UserError


def command(
    output: Annotated[
        Path, typer.Argument(help="Folder to write; one sub-folder per model.")
    ] = Path("checkpoints"),
    preset: Annotated[str, typer.Option(help="tiny, the only one.")] = "tiny",
    seed: Annotated[int, typer.Option(help="Equal seeds give equal weights.")] = 0,
) -> None:
    """Write a tiny randomly initialised checkpoint of every network in the official layouts.

    Example: cosmos-pipelines make-checkpoint checkpoints --preset tiny
    """
    if preset != "tiny":
        raise UserError(f"There is no preset '{preset}' to make. There is: tiny.")
    make_tiny(output, seed)
    for folder in sorted(path for path in output.iterdir() if path.is_dir()):
        typer.echo(f"file://{folder.resolve()}")


def make_tiny(folder: Path, seed: int = 0) -> Path:
    """Write the tiny set under ``folder`` and return it; `complete.json` is written last."""
    from components.lib.cosmos.formats.tiny import write_tiny

    return write_tiny(folder, seed)
