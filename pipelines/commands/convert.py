"""`cosmos-pipelines convert`: checkpoints between their forms."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from components.lib.contract import UserError

FORMS = ("canonical", "diffusers", "jit", "model.pt")
DTYPES = ("keep", "bfloat16", "float16", "float32")


def command(
    source: Annotated[
        str,
        typer.Argument(
            help="A checkpoint (model.pt, NeMo, diffusers, jit or canonical folder), or the "
            "manifest.json (path or s3://…) of a fetch or a training run."
        ),
    ],
    destination: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    to: Annotated[str, typer.Option("--to", help=f"One of: {', '.join(FORMS)}.")] = "canonical",
    name: Annotated[str, typer.Option(help="Name of the model; empty keeps its own.")] = "",
    dtype: Annotated[str, typer.Option(help=f"One of: {', '.join(DTYPES)}.")] = "keep",
) -> None:
    """Convert a checkpoint and write a model card beside it.

    The keys are checked strictly; nothing is written when one is missing, unexpected or of another
    shape. TorchScript archives (.jit) are code and are opened in a child process.

    Example: cosmos-pipelines convert s3://cosmos/runs/training/…/manifest.json out --to diffusers
    """
    if to not in FORMS:
        raise UserError(f"There is no form '{to}'. There are: {', '.join(FORMS)}.")
    if dtype not in DTYPES:
        raise UserError(f"There is no dtype '{dtype}' here. There are: {', '.join(DTYPES)}.")
    from components.lib.cosmos.formats.exporting import export_model
    from components.lib.cosmos.formats.model_card import trace_origin

    with tempfile.TemporaryDirectory(prefix="cosmos-convert-") as scratch:
        origin, place = None, Path(source)
        if source.endswith("manifest.json"):
            from components.lib.cosmos.model_folder import download_model
            from components.lib.manifest import load_manifest
            from components.lib.store import ObjectStore

            store = ObjectStore.from_env()
            manifest = load_manifest(source, store)
            origin = trace_origin(manifest, store)
            place = download_model(manifest, store, Path(scratch) / "model")
        elif "://" in source:
            raise UserError(
                f"{source} is neither a path nor a manifest.json. Fetch a repository first: "
                "cosmos-pipelines stage checkpoint_fetch."
            )
        report = export_model(
            place,
            destination,
            to,  # type: ignore[arg-type]
            name=name,
            dtype=dtype,  # type: ignore[arg-type]
            origin=origin,
            origin_text=source,
            say=typer.echo,
        )
    for note in report.notes:
        typer.echo(f"note: {note}")
    typer.echo(
        f"{report.name} ({report.family}): {report.source_format} -> {report.form}, "
        f"{', '.join(report.files)} in {destination}"
    )
