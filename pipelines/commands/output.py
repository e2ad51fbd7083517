"""What several commands print: the stages of a local run, and a cluster's run until it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from components.lib.contract import UserError

if TYPE_CHECKING:
    from pipelines.client import RunInfo, Server
    from pipelines.local import LocalRun


def show_local_run(run: LocalRun) -> None:
    """Print what each stage did and where the reports are."""
    width = max((len(record.stage) for record in run.stages), default=0)
    for record in run.stages:
        state = "reused" if record.reused else f"{record.seconds:6.1f} s"
        typer.echo(f"  {record.stage:<{width}}  {state:>8}  {record.manifest}")
    for report in run.reports:
        typer.echo(f"report: {report.resolve()}")
    typer.echo(f"{run.pipeline}: finished in {run.seconds:.0f} s (log: {run.log})")


def follow_to_the_end(server: Server, run_id: str, namespace: str | None) -> None:
    """Say what happens until the run ends. Exits with 1 unless it succeeded."""
    from pipelines.client import follow

    ended = follow(server, run_id, typer.echo, extra=training_progress(namespace))
    if ended.state != "SUCCEEDED":
        detail = f": {ended.error}" if ended.error else ""
        raise UserError(f"Run {run_id} ended as {ended.state}{detail}. See {ended.url}")
    typer.echo(f"run {run_id} succeeded")


def training_progress(namespace: str | None) -> Callable[[RunInfo], str | None] | None:
    """A function run -> progress of its training job, or None without access to the cluster."""
    from pipelines.backend import cluster

    try:
        reached = cluster.connect(namespace, lambda _line: None)
    except UserError:
        return None

    def line(info: RunInfo) -> str | None:
        try:
            return cluster.progress_line(reached, info.run_id)
        except UserError:  # progress is an extra: following the run goes on without it
            return None

    return line
