"""Submit, follow, cancel and schedule pipelines from Python; the commands are thin over this.

    from pipelines.client import Connection, Server, submit, follow

    server = Server(Connection(endpoint="https://kfp.example.com"))
    run = submit(server, "diffusion", {"videos": "s3://fleet/2026-11"})
    follow(server, run.run_id, print)

This is the whole Python API; what it is made of lies in `pipelines.backend`. Parameters are checked
against the compiled pipeline before anything is sent.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from components.lib.contract import UserError
from components.training.launch.names import STEP_ACCOUNT
from pipelines import compiling
from pipelines.backend.connection import Connection, Server
from pipelines.backend.runs import (
    RunInfo,
    TaskState,
    cancel,
    follow,
    list_runs,
    read_run,
    run_info,
)
from pipelines.backend.schedules import (
    Schedule,
    create_schedule,
    delete_schedule,
    list_schedules,
    pause_schedule,
    resume_schedule,
)
from pipelines.backend.uploads import experiment_id, first, named, upload

__all__ = [
    "Connection",
    "RunInfo",
    "Schedule",
    "Server",
    "TaskState",
    "cancel",
    "create_schedule",
    "delete_schedule",
    "follow",
    "list_runs",
    "list_schedules",
    "logs",
    "pause_schedule",
    "resume_schedule",
    "run_info",
    "submit",
    "upload",
]

log = logging.getLogger("cosmos")


def submit(
    server: Server,
    pipeline: str,
    parameters: Mapping[str, Any],
    *,
    images: Mapping[str, str] | None = None,
    gpu_type: str | None = None,
    encode_pods: int = 1,
    experiment: str = "cosmos",
    name: str | None = None,
    service_account: str | None = STEP_ACCOUNT,
    caching: bool = True,
) -> RunInfo:
    """Start a run of one of `pipelines.catalog`; upload the pipeline first if it changed.

    ``images`` maps default images to what to run instead; ``gpu_type`` is the value of the node
    label nvidia.com/gpu.product of the nodes to use (default: any); ``encode_pods`` pods share the
    encoding of latents. ``caching=False`` runs every stage again (stages still find outputs that
    are complete in the store). Raises UserError for unknown parameters, bad overrides, and what
    KFP refuses.
    """
    text = compiling.compile_pipeline(pipeline, images, gpu_type, encode_pods)
    checked = compiling.check_parameters(text, parameters)
    uploaded = upload(server, text)
    group = experiment_id(server, experiment)
    title = name or f"{pipeline}-{uploaded.version}"
    title = f"{title}-{uuid.uuid4().hex[:8]}"  # unique, so that a lost answer can be looked up
    run = server.created_once(
        f"Starting a run of '{pipeline}'",
        lambda: server.api.run_pipeline(
            experiment_id=group,
            job_name=title,
            params=checked,
            pipeline_id=uploaded.pipeline_id,
            version_id=uploaded.version_id,
            enable_caching=None if caching else False,
            service_account=service_account,
        ),
        lambda: first(server.api.list_runs(experiment_id=group, filter=named(title)).runs),
    )
    return read_run(server, run)


def logs(
    server: Server,
    run_id: str,
    step: str | None = None,
    *,
    follow: bool = False,
    tail: int = 200,
    namespace: str | None = None,
) -> tuple[str, Iterator[str]]:
    """Name and log lines of a step: of the one named, else that failed, that runs, or the last.

    Lines come from the step's pod, so this needs KUBECONFIG (or to run in the cluster). Raises
    UserError naming the steps there are.
    """
    from pipelines.backend import cluster

    tasks = {task.name: task for task in run_info(server, run_id).tasks if task.pods}
    if step is None:
        step = next(
            (
                task.name
                for state in ("FAILED", "RUNNING")
                for task in tasks.values()
                if task.state == state
            ),
            next(reversed(tasks), None),
        )
    if step is None:
        raise UserError(f"No step of run {run_id} has started yet.")
    if step not in tasks:
        known = ", ".join(tasks) or "none"
        raise UserError(f"Run {run_id} has no step '{step}'. Steps: {known}.")
    reached = cluster.connect(namespace, log.warning)
    return step, cluster.step_log(reached, tasks[step].pods, follow, tail)
