"""Recurring runs on a KFP server, and the cron expressions that say when."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from components.lib.contract import Frozen, UserError
from components.training.launch.names import STEP_ACCOUNT
from pipelines import compiling
from pipelines.backend.connection import Server
from pipelines.backend.uploads import experiment_id, first, named, upload


class Schedule(Frozen):
    """A recurring run."""

    schedule_id: str
    name: str
    enabled: bool
    cron: str
    url: str
    parameters: dict[str, Any] = {}


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
    service_account: str | None = STEP_ACCOUNT,
    catch_up: bool = False,
    max_concurrency: int = 1,
    enabled: bool = True,
) -> Schedule:
    """Run a pipeline on a cron schedule (UTC), by default one run at a time and no catching up.

    ``cron`` has the usual five fields, or six with seconds in front. Names are unique: a second
    schedule of the same name is refused.
    """
    text = compiling.compile_pipeline(pipeline, images, gpu_type, encode_pods)
    checked = compiling.check_parameters(text, parameters)
    expression = six_fields(cron)
    if any(schedule.name == name for schedule in list_schedules(server)):
        raise UserError(f"There is a schedule '{name}' already. Delete it, or choose another name.")
    uploaded = upload(server, text)
    group = experiment_id(server, experiment)
    made = server.created_once(
        f"Creating the schedule '{name}'",
        lambda: server.api.create_recurring_run(
            experiment_id=group,
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
        lambda: first(
            server.api.list_recurring_runs(experiment_id=group, filter=named(name)).recurring_runs
        ),
    )
    return _schedule(server, made)


def list_schedules(server: Server) -> list[Schedule]:
    """All recurring runs of the namespace."""
    schedules: list[Schedule] = []
    token = ""
    while True:
        page = token

        def read(page: str = page) -> Any:
            return server.api.list_recurring_runs(
                page_token=page, page_size=100, namespace=server.namespace
            )

        answer = server.call("Listing schedules", read)
        schedules += [_schedule(server, item) for item in answer.recurring_runs or []]
        token = answer.next_page_token or ""
        if not token:
            return schedules


def pause_schedule(server: Server, name: str) -> None:
    """Start no more runs until it is resumed."""
    identity = find_schedule(server, name).schedule_id
    server.call(f"Pausing '{name}'", lambda: server.api.disable_recurring_run(identity))


def resume_schedule(server: Server, name: str) -> None:
    """Start runs again; slots missed meanwhile are not made up for."""
    identity = find_schedule(server, name).schedule_id
    server.call(f"Resuming '{name}'", lambda: server.api.enable_recurring_run(identity))


def delete_schedule(server: Server, name: str) -> None:
    """Remove a schedule; runs that it started go on."""
    identity = find_schedule(server, name).schedule_id
    server.call(f"Deleting '{name}'", lambda: server.api.delete_recurring_run(identity))


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
