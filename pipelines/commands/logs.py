"""`cosmos-pipelines logs`: the log of a step, straight from its pod."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.commands.options import Endpoint, Namespace


def command(
    run: Annotated[str, typer.Argument(help="Id of a run.")],
    step: Annotated[
        str | None, typer.Argument(help="Name of a step; none takes the one that runs or failed.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on as lines appear.")] = False,
    tail: Annotated[int, typer.Option(help="How many lines from the end.", min=1)] = 200,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
) -> None:
    """Print the log of a step. Needs access to the cluster (KUBECONFIG), not only to KFP."""
    from pipelines.client import Connection, Server, logs

    server = Server(Connection(endpoint=endpoint, namespace=namespace))
    name, lines = logs(server, run, step, follow=follow, tail=tail, namespace=namespace)
    typer.echo(f"== {name} ==", err=True)
    for line in lines:
        typer.echo(line)
