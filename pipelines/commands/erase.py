"""`cosmos-pipelines erase VIDEO`: delete a fleet video and say which models used it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from components.lib.contract import UserError
from pipelines.commands.options import StorageRoot
from pipelines.forms import STORAGE_ROOT


def command(
    video: Annotated[str, typer.Argument(help="Its URI, path, or sha256.")],
    storage_root: StorageRoot = STORAGE_ROOT,
    yes: Annotated[
        bool, typer.Option("--yes", help="Delete. Without it, only say what would be.")
    ] = False,
) -> None:
    """Delete a video under all its names and the data sets that hold it; list the models.

    Model versions stay: retrain without the video and promote, or roll back. Example:
    cosmos-pipelines erase s3://fleet/drive=7/0.mp4 --yes
    """
    from components.lib.erasure import erase, find_traces
    from components.lib.store import ObjectStore

    store = ObjectStore.from_env()
    traces = find_traces(store, storage_root, video)
    if traces is None:
        raise UserError(
            f"{video} does not exist and no run under {storage_root} has seen it. If it had "
            "another name, give that, or its sha256."
        )
    typer.echo(f"content {traces.sha256}")
    _list("model versions that used it", traces.versions)
    _list("reports whose pictures may show it", traces.reports)
    _list("data sets that hold it", traces.data_sets)
    _list("it lies at", traces.names)
    if not yes:
        typer.echo("Nothing was deleted. With --yes the data sets and the video are.")
        return
    typer.echo(f"deleted {erase(store, traces)} files")


def _list(title: str, items: Sequence[str]) -> None:
    typer.echo(f"{title}: {len(items) or 'none'}")
    for item in items:
        typer.echo(f"  {item}")
