"""`cosmos-pipelines cancel`: stop a run and its training jobs."""

from __future__ import annotations

from typing import Annotated

import typer

from components.lib.contract import UserError
from pipelines.commands.options import Endpoint, Namespace


def command(
    run: Annotated[str, typer.Argument(help="Id of a run.")],
    endpoint: Endpoint = None,
    namespace: Namespace = None,
) -> None:
    """Stop a run. Its steps delete their training jobs; what they leave is deleted here.

    KFP may kill a step before it can clean up, so the jobs of the run are looked for as well.
    """
    from pipelines import client
    from pipelines.backend import cluster

    server = client.Server(client.Connection(endpoint=endpoint, namespace=namespace))
    client.cancel(server, run)
    typer.echo(f"asked KFP to stop run {run}")
    try:
        names = cluster.delete_jobs(cluster.connect(namespace, typer.echo), run)
    except UserError as error:
        typer.echo(f"its training jobs could not be looked for: {error}", err=True)
        return
    for name in names:
        typer.echo(f"deleted training job {name}")
