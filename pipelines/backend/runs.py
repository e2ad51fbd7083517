"""Runs on a KFP server: KFP's answers in this project's words, listed, followed, stopped."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from components.lib.contract import Frozen, UserError
from pipelines.backend.connection import Server

FINISHED = frozenset({"SUCCEEDED", "FAILED", "SKIPPED", "CANCELED"})


class TaskState(Frozen):
    """One task of a run. ``pods`` are the names of its pods, the working one last."""

    name: str
    state: str
    error: str = ""
    pods: tuple[str, ...] = ()


class RunInfo(Frozen):
    """A run. ``state`` is one of KFP's: PENDING, RUNNING, SUCCEEDED, FAILED, CANCELED, …"""

    run_id: str
    name: str
    state: str
    url: str
    created: str = ""
    error: str = ""
    tasks: tuple[TaskState, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether it will not change any more."""
        return self.state in FINISHED


def run_info(server: Server, run_id: str) -> RunInfo:
    """A run and its tasks."""
    run = server.call(f"Reading run {run_id}", lambda: server.api.get_run(run_id))
    return read_run(server, run)


def list_runs(server: Server, limit: int = 10) -> list[RunInfo]:
    """The newest runs, without their tasks."""
    answer = server.call(
        "Listing runs",
        lambda: server.api.list_runs(
            page_size=limit, sort_by="created_at desc", namespace=server.namespace
        ),
    )
    return [read_run(server, run) for run in answer.runs or []]


def follow(
    server: Server,
    run_id: str,
    say: Callable[[str], None],
    poll_s: float = 10.0,
    extra: Callable[[RunInfo], str | None] | None = None,
) -> RunInfo:
    """Say each change of a run's tasks until it ends; return how it ended.

    ``extra`` may add a line per round, for example the progress of training.
    """
    states: dict[str, str] = {}
    last = ""
    while True:
        info = run_info(server, run_id)
        for task in info.tasks:
            if states.get(task.name) != task.state:
                states[task.name] = task.state
                say(f"{task.name}: {task.state.lower()}" + (f": {task.error}" * bool(task.error)))
        line = extra(info) if extra else None
        if line and line != last:
            last = line
            say(line)
        if info.finished:
            return info
        time.sleep(poll_s)


def cancel(server: Server, run_id: str) -> None:
    """Ask KFP to stop a run. Training jobs of the run: `pipelines.backend.cluster.delete_jobs`."""
    server.call(f"Cancelling run {run_id}", lambda: server.api.terminate_run(run_id))


def read_run(server: Server, run: Any) -> RunInfo:
    """A run as KFP tells it, its tasks in the order in which they were created."""
    if not getattr(run, "run_id", None):
        raise UserError(
            "What answers instead of KFP knows no runs (the log-in page of a proxy?). Check "
            "--endpoint, and log in again."
        )
    details = run.run_details.task_details if run.run_details else None
    tasks: list[TaskState] = []
    known: Counter[str] = Counter()
    # in the order in which they were created, so that a name means the same task in every answer
    for task in sorted(details or [], key=lambda task: (str(task.create_time), str(task.task_id))):
        pods = [child.pod_name for child in task.child_tasks or [] if child.pod_name]
        if task.pod_name:
            pods.append(task.pod_name)
        name = task.display_name
        if name and not name.endswith("-driver"):
            known[name] += 1
            tasks.append(
                TaskState(
                    name=name if known[name] == 1 else f"{name} ({known[name]})",
                    state=str(task.state or "PENDING"),
                    error=str(task.error.message) if task.error else "",
                    pods=tuple(pods),
                )
            )
    return RunInfo(
        run_id=run.run_id,
        name=run.display_name or "",
        state=str(run.state or "PENDING"),
        url=server.run_url(run.run_id),
        created=str(run.created_at or ""),
        error=str(run.error.message) if run.error else "",
        tasks=tuple(tasks),
    )
