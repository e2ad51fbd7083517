"""`cosmos-pipelines report RUN…`: loss curves of one or several runs in one HTML file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def command(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Training runs: s3:// manifests or prefixes, folders with metrics.jsonl or "
            "TensorBoard events, or metrics.jsonl files.",
            metavar="RUN...",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="HTML file; .csv, .png and .md go beside it.")
    ] = Path("report.html"),
) -> None:
    """Compare training runs: curves, verdicts in words, speed, settings that differ.

    Runs in object storage need AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
    """
    from components.lib.report.comparison import run_markdown, run_page, unique_names
    from components.lib.report.curve_picture import to_png
    from components.lib.report.curves import to_csv
    from components.lib.report.sources import open_run
    from components.lib.store import ObjectStore

    store = ObjectStore.from_env() if "AWS_ENDPOINT_URL" in os.environ else None
    opened = unique_names([open_run(ref, store) for ref in runs])
    summary = run_markdown(opened)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(run_page(opened))
    output.with_suffix(".csv").write_bytes(to_csv(opened))
    output.with_suffix(".png").write_bytes(to_png(opened))
    output.with_suffix(".md").write_text(summary)
    typer.echo(summary)
    typer.echo(f"Report: {output}")
