"""`cosmos-pipelines logs`: the log of a step, straight from its pod."""

from __future__ import annotations

from typing import Annotated

import typer

from components.lib.contract import UserError
from pipelines.commands.submit import Endpoint, Namespace


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
    from pipelines import cluster
    from pipelines.client import Connection, Server, run_info

    info = run_info(Server(Connection(endpoint=endpoint, namespace=namespace)), run)
    names = {task.name: task for task in info.tasks if task.pods}
    if step is None:
        order = ("FAILED", "RUNNING")
        step = next(
            (task.name for state in order for task in names.values() if task.state == state),
            next(reversed(names), None),
        )
    if step is None:
        raise UserError(f"No step of run {run} has started yet.")
    if step not in names:
        raise UserError(f"Run {run} has no step '{step}'. Steps: {', '.join(names) or 'none'}.")
    found = cluster.connect(namespace, lambda line: typer.echo(line, err=True))
    typer.echo(f"== {step} ==", err=True)
    for line in cluster.step_log(found, names[step].pods, follow, tail):
        typer.echo(line)
