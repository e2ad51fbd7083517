"""`cosmos-pipelines status`: what runs, and how far a run is."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipelines.commands.options import Endpoint, Namespace
from pipelines.commands.output import follow_to_the_end, training_progress


def command(
    run: Annotated[str | None, typer.Argument(help="Id of a run; none lists the newest.")] = None,
    limit: Annotated[int, typer.Option(help="How many runs to list.", min=1)] = 10,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow the run; exit 1 unless it succeeds.")
    ] = False,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
) -> None:
    """List the newest runs, or show the tasks of one and how far its training is."""
    from pipelines.client import Connection, Server, list_runs, run_info

    server = Server(Connection(endpoint=endpoint, namespace=namespace))
    if run is None:
        for info in list_runs(server, limit):
            typer.echo(f"{info.run_id}  {info.state:<9}  {info.created[:19]}  {info.name}")
        return
    if wait:
        follow_to_the_end(server, run, namespace)
        return
    info = run_info(server, run)
    show(info)
    progress = training_progress(namespace)
    line = progress(info) if progress and not info.finished else None
    if line:
        typer.echo(line)


def show(info: Any) -> None:
    """Print a run and its tasks."""
    typer.echo(f"{info.name}: {info.state}" + (f": {info.error}" if info.error else ""))
    width = max((len(task.name) for task in info.tasks), default=0)
    for task in info.tasks:
        error = f"  {task.error}" if task.error else ""
        typer.echo(f"  {task.name:<{width}}  {task.state}{error}")
    typer.echo(info.url)
