"""Submit, follow, cancel and schedule pipelines from Python; the commands are thin over this.

    from pipelines.client import Connection, Server, submit, follow

    server = Server(Connection(endpoint="https://kfp.example.com"))
    run = submit(server, "diffusion", {"videos": "s3://fleet/2026-11"})
    follow(server, run.run_id, print)

A pipeline is uploaded as a new version only when its compiled YAML changed: the version's name
holds the YAML's digest. Parameters are checked against the compiled pipeline before anything is
sent.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import re
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from components.lib.contract import Frozen, UserError
from pipelines.backend.connection import Connection, Server

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
FINISHED = frozenset({"SUCCEEDED", "FAILED", "SKIPPED", "CANCELED"})
SERVICE_ACCOUNT = "cosmos-pipeline"


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


class Schedule(Frozen):
    """A recurring run."""

    schedule_id: str
    name: str
    enabled: bool
    cron: str
    url: str
    parameters: dict[str, Any] = {}


class Uploaded(Frozen):
    """A version of a pipeline on the server."""

    pipeline_id: str
    version_id: str
    version: str
    new: bool


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
    service_account: str | None = SERVICE_ACCOUNT,
    caching: bool = True,
) -> RunInfo:
    """Start a run of one of `pipelines.catalog`; upload the pipeline first if it changed.

    ``images`` maps default images to what to run instead; ``gpu_type`` is the value of the node
    label nvidia.com/gpu.product of the nodes to use (default: any); ``encode_pods`` pods share the
    encoding of latents. ``caching=False`` runs every stage again (stages still find outputs that
    are complete in the store). Raises UserError for unknown parameters, bad overrides, and what
    KFP refuses.
    """
    text = _compiled(pipeline, images, gpu_type, encode_pods)
    checked = check_parameters(text, parameters)
    uploaded = upload(server, text)
    experiment_id = _experiment(server, experiment)
    title = name or f"{pipeline}-{uploaded.version}"
    title = f"{title}-{uuid.uuid4().hex[:8]}"  # unique, so that a lost answer can be looked up
    run = server.created_once(
        f"Starting a run of '{pipeline}'",
        lambda: server.api.run_pipeline(
            experiment_id=experiment_id,
            job_name=title,
            params=checked,
            pipeline_id=uploaded.pipeline_id,
            version_id=uploaded.version_id,
            enable_caching=None if caching else False,
            service_account=service_account,
        ),
        lambda: _first(
            server.api.list_runs(experiment_id=experiment_id, filter=_named(title)).runs
        ),
    )
    return _run(server, run)


def upload(server: Server, text: str) -> Uploaded:
    """Make sure that the server has this compiled pipeline; nothing is sent when it has."""
    name = _spec(text)["pipelineInfo"]["name"]
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        path.write_text(text)
        pipeline_id = server.call(
            f"Looking for the pipeline '{name}'", lambda: server.api.get_pipeline_id(name)
        )
        if pipeline_id is None:
            pipeline_id = server.created_once(
                f"Uploading the pipeline '{name}'",
                lambda: _new_pipeline(server, name),
                lambda: server.api.get_pipeline_id(name),
            )
        version = f"{name}-{digest}"
        found = server.call(
            f"Looking for versions of '{name}'", lambda: _version(server, pipeline_id, version)
        )
        if found is not None:
            return Uploaded(
                pipeline_id=pipeline_id,
                version_id=found.pipeline_version_id,
                version=digest,
                new=False,
            )
        made = server.created_once(
            f"Uploading a version of '{name}'",
            lambda: server.api.upload_pipeline_version(str(path), version, pipeline_id=pipeline_id),
            lambda: _version(server, pipeline_id, version),
        )
    return Uploaded(
        pipeline_id=pipeline_id, version_id=made.pipeline_version_id, version=digest, new=True
    )


def check_parameters(text: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters that fit the compiled pipeline. Raises UserError naming the one that does not."""
    from components.harness.overrides import check_overrides

    inputs = _spec(text)["root"].get("inputDefinitions", {}).get("parameters", {})
    for name in parameters:
        if name not in inputs:
            near = difflib.get_close_matches(name, inputs, n=1)
            hint = f"Did you mean '{near[0]}'?" if near else f"There are: {', '.join(inputs)}."
            raise UserError(f"The pipeline has no parameter '{name}'. {hint}")
    for name, spec in inputs.items():
        if name in parameters:
            _check_type(name, spec["parameterType"], parameters[name])
        elif "defaultValue" not in spec and not spec.get("isOptional"):
            raise UserError(f"The parameter '{name}' is required. Give --parameter {name}=….")
    check_overrides(parameters.get("overrides") or [])
    return dict(parameters)


def run_info(server: Server, run_id: str) -> RunInfo:
    """A run and its tasks."""
    return _run(
        server,
        server.call(f"Reading run {run_id}", lambda: server.api.get_run(run_id)),
    )


def list_runs(server: Server, limit: int = 10) -> list[RunInfo]:
    """The newest runs, without their tasks."""
    answer = server.call(
        "Listing runs",
        lambda: server.api.list_runs(
            page_size=limit, sort_by="created_at desc", namespace=server.namespace
        ),
    )
    return [_run(server, run) for run in answer.runs or []]


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

    names = {task.name: task for task in run_info(server, run_id).tasks if task.pods}
    if step is None:
        step = next(
            (
                task.name
                for state in ("FAILED", "RUNNING")
                for task in names.values()
                if task.state == state
            ),
            next(reversed(names), None),
        )
    if step is None:
        raise UserError(f"No step of run {run_id} has started yet.")
    if step not in names:
        known = ", ".join(names) or "none"
        raise UserError(f"Run {run_id} has no step '{step}'. Steps: {known}.")
    found = cluster.connect(namespace, log.warning)
    return step, cluster.step_log(found, names[step].pods, follow, tail)


def cancel(server: Server, run_id: str) -> None:
    """Ask KFP to stop a run. Training jobs of the run: `pipelines.backend.cluster.delete_jobs`."""
    server.call(f"Cancelling run {run_id}", lambda: server.api.terminate_run(run_id))


# -- schedules -------------------------------------------------------------------------------


def create_schedule(
    server: Server,
    name: str,
    pipeline: str,
    cron: str,
    parameters: Mapping[str, Any],
    *,
    images: Mapping[str, str] | None = None,
    gpu_type: str | None = None,
    encode_pods: int = 1,
    experiment: str = "cosmos",
    service_account: str | None = SERVICE_ACCOUNT,
    catch_up: bool = False,
    max_concurrency: int = 1,
    enabled: bool = True,
) -> Schedule:
    """Run a pipeline on a cron schedule (UTC), by default one run at a time and no catching up.

    ``cron`` has the usual five fields, or six with seconds in front. Names are unique: a second
    schedule of the same name is refused.
    """
    text = _compiled(pipeline, images, gpu_type, encode_pods)
    checked = check_parameters(text, parameters)
    expression = six_fields(cron)
    if any(schedule.name == name for schedule in list_schedules(server)):
        raise UserError(f"There is a schedule '{name}' already. Delete it, or choose another name.")
    uploaded = upload(server, text)
    experiment_id = _experiment(server, experiment)
    made = server.created_once(
        f"Creating the schedule '{name}'",
        lambda: server.api.create_recurring_run(
            experiment_id=experiment_id,
            job_name=name,
            cron_expression=expression,
            max_concurrency=max_concurrency,
            no_catchup=not catch_up,
            params=checked,
            pipeline_id=uploaded.pipeline_id,
            version_id=uploaded.version_id,
            enabled=enabled,
            service_account=service_account,
        ),
        lambda: _first(
            server.api.list_recurring_runs(
                experiment_id=experiment_id, filter=_named(name)
            ).recurring_runs
        ),
    )
    return _schedule(server, made)


def list_schedules(server: Server) -> list[Schedule]:
    """All recurring runs of the namespace."""
    found, token = [], ""
    while True:
        page = token

        def read(page: str = page) -> Any:
            return server.api.list_recurring_runs(
                page_token=page, page_size=100, namespace=server.namespace
            )

        answer = server.call("Listing schedules", read)
        found += [_schedule(server, item) for item in answer.recurring_runs or []]
        token = answer.next_page_token or ""
        if not token:
            return found


def pause_schedule(server: Server, name: str) -> None:
    """Start no more runs until it is resumed."""
    found = find_schedule(server, name)
    server.call(f"Pausing '{name}'", lambda: server.api.disable_recurring_run(found.schedule_id))


def resume_schedule(server: Server, name: str) -> None:
    """Start runs again; slots missed meanwhile are not made up for."""
    found = find_schedule(server, name)
    server.call(f"Resuming '{name}'", lambda: server.api.enable_recurring_run(found.schedule_id))


def delete_schedule(server: Server, name: str) -> None:
    """Remove a schedule; runs that it started go on."""
    found = find_schedule(server, name)
    server.call(f"Deleting '{name}'", lambda: server.api.delete_recurring_run(found.schedule_id))


def find_schedule(server: Server, name: str) -> Schedule:
    """A schedule by name or id. Raises UserError listing what there is."""
    schedules = list_schedules(server)
    for schedule in schedules:
        if name in (schedule.name, schedule.schedule_id):
            return schedule
    known = ", ".join(schedule.name for schedule in schedules) or "none"
    raise UserError(f"There is no schedule '{name}'. There are: {known}.")


def six_fields(cron: str) -> str:
    """KFP's cron, which has seconds in front. Raises UserError for anything but 5 or 6 fields."""
    fields = cron.split()
    if len(fields) == 5:
        fields = ["0", *fields]
    ranges = ((0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
    names = ("second", "minute", "hour", "day of the month", "month", "day of the week")
    if len(fields) != 6:
        raise UserError(
            f"The cron expression '{cron}' has {len(fields)} fields. Give minute, hour, day, "
            "month and weekday, for example '0 3 * * 1' for Mondays at three (UTC)."
        )
    for field, (low, high), what in zip(fields, ranges, names, strict=True):
        if not re.fullmatch(r"[\d*/,?A-Za-z-]+", field) or any(
            not low <= int(number) <= high for number in re.findall(r"(?<!/)\b\d+", field)
        ):
            raise UserError(f"In the cron expression '{cron}', '{field}' is no {what}.")
    return " ".join(fields)


# -- shared ----------------------------------------------------------------------------------


def _compiled(
    pipeline: str, images: Mapping[str, str] | None, gpu_type: str | None, encode_pods: int
) -> str:
    from pipelines.commands.compile import compile_pipeline

    return compile_pipeline(pipeline, dict(images or {}), gpu_type, encode_pods)


def _spec(text: str) -> dict[str, Any]:
    import yaml

    return dict(next(iter(yaml.safe_load_all(text))))


def _check_type(name: str, kind: str, value: Any) -> None:
    fits = {
        "STRING": isinstance(value, str),
        "NUMBER_INTEGER": isinstance(value, int) and not isinstance(value, bool),
        "NUMBER_DOUBLE": isinstance(value, int | float) and not isinstance(value, bool),
        "BOOLEAN": isinstance(value, bool),
        "LIST": isinstance(value, list),
        "STRUCT": isinstance(value, dict),
    }
    if not fits.get(kind, True):
        wanted = kind.removeprefix("NUMBER_").lower()
        raise UserError(f"The parameter '{name}' must be a {wanted}, not {value!r}.")


def _experiment(server: Server, name: str) -> str:
    made = server.call(
        f"Opening the experiment '{name}'",
        lambda: server.api.create_experiment(name, namespace=server.namespace),
    )
    return str(made.experiment_id)


def _new_pipeline(server: Server, name: str) -> str:
    """A pipeline without versions; `upload_pipeline` would make one whose name tells nothing."""
    import kfp_server_api

    body = kfp_server_api.V2beta1Pipeline(name=name, display_name=name, namespace=server.namespace)
    return str(server.api._pipelines_api.pipeline_service_create_pipeline(body).pipeline_id)


def _version(server: Server, pipeline_id: str, name: str) -> Any:
    answer = server.api.list_pipeline_versions(pipeline_id, filter=_named(name))
    return _first(answer.pipeline_versions)


def _named(name: str) -> str:
    predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
    return json.dumps({"predicates": [predicate]})


def _first(items: list[Any] | None) -> Any:
    return items[0] if items else None


def _run(server: Server, run: Any) -> RunInfo:
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


def _schedule(server: Server, item: Any) -> Schedule:
    trigger = item.trigger.cron_schedule if item.trigger else None
    return Schedule(
        schedule_id=item.recurring_run_id,
        name=item.display_name or "",
        enabled=str(item.status or item.mode or "").upper().startswith("ENABLE"),
        cron=trigger.cron if trigger else "",
        url=server.schedule_url(item.recurring_run_id),
        parameters=dict(item.runtime_config.parameters or {}) if item.runtime_config else {},
    )
