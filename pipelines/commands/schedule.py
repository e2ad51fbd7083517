"""`cosmos-pipelines schedule`: recurring runs."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from components.lib.contract import UserError
from components.training.launch.names import STEP_ACCOUNT
from pipelines.commands.options import (
    Account,
    EncodePods,
    Endpoint,
    Experiment,
    GpuType,
    Images,
    Namespace,
    Overrides,
    Parameters,
    ParametersFile,
    collect_parameters,
)


class Action(StrEnum):
    """What to do with a schedule."""

    CREATE = "create"
    LIST = "list"
    PAUSE = "pause"
    RESUME = "resume"
    DELETE = "delete"


def command(
    action: Annotated[Action, typer.Argument(help="create, list, pause, resume or delete.")],
    name: Annotated[str | None, typer.Argument(help="Name of the schedule.")] = None,
    pipeline: Annotated[str | None, typer.Argument(help="create: which pipeline.")] = None,
    cron: Annotated[
        str | None, typer.Option(help="create: minute hour day month weekday, in UTC.")
    ] = None,
    parameter: Parameters = None,
    override: Overrides = None,
    parameters_file: ParametersFile = None,
    image: Images = None,
    gpu_type: GpuType = None,
    encode_pods: EncodePods = 1,
    experiment: Experiment = "cosmos",
    catch_up: Annotated[
        bool, typer.Option("--catch-up", help="Make up for slots missed while paused.")
    ] = False,
    concurrency: Annotated[int, typer.Option(help="Runs at a time.", min=1, max=10)] = 1,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    service_account: Account = STEP_ACCOUNT,
) -> None:
    """Create, list, pause, resume or delete recurring runs.

    Example: cosmos-pipelines schedule create nightly diffusion --cron '0 2 * * *' -p videos=s3://…
    """
    from pipelines import client
    from pipelines.compiling import image_overrides

    if action is not Action.LIST and name is None:
        raise UserError(f"Name the schedule: cosmos-pipelines schedule {action.value} NAME.")
    if action is Action.CREATE and (pipeline is None or cron is None):
        raise UserError(
            "Say what to run and when: cosmos-pipelines schedule create NAME PIPELINE "
            "--cron '0 3 * * 1'."
        )
    server = client.Server(client.Connection(endpoint=endpoint, namespace=namespace))
    title = name or ""
    if action is Action.LIST:
        for schedule in client.list_schedules(server):
            state = "on" if schedule.enabled else "paused"
            typer.echo(f"{schedule.name}  {state}  {schedule.cron}  {schedule.schedule_id}")
    elif action is Action.CREATE:
        made = client.create_schedule(
            server,
            title,
            str(pipeline),
            str(cron),
            collect_parameters(parameters_file, parameter, override),
            images=image_overrides(image or []),
            gpu_type=gpu_type,
            encode_pods=encode_pods,
            experiment=experiment,
            service_account=service_account or None,
            catch_up=catch_up,
            max_concurrency=concurrency,
        )
        typer.echo(made.schedule_id)
        typer.echo(made.url)
    elif action is Action.PAUSE:
        client.pause_schedule(server, title)
        typer.echo(f"paused {title}")
    elif action is Action.RESUME:
        client.resume_schedule(server, title)
        typer.echo(f"resumed {title}")
    else:
        client.delete_schedule(server, title)
        typer.echo(f"deleted {title}")
