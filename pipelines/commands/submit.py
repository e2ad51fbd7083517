"""`cosmos-pipelines submit`: start a pipeline on a KFP cluster."""

from __future__ import annotations

from typing import Annotated

import typer

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
    Pipeline,
    collect_parameters,
)
from pipelines.commands.output import follow_to_the_end


def command(
    pipeline: Pipeline,
    parameter: Parameters = None,
    override: Overrides = None,
    parameters_file: ParametersFile = None,
    image: Images = None,
    gpu_type: GpuType = None,
    encode_pods: EncodePods = 1,
    experiment: Experiment = "cosmos",
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    cache: Annotated[bool, typer.Option(help="Let KFP reuse earlier results of steps.")] = True,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow the run; exit 1 unless it succeeds.")
    ] = False,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    service_account: Account = STEP_ACCOUNT,
) -> None:
    """Start a run on a cluster and print its page; the pipeline is uploaded when it changed.

    Example: cosmos-pipelines submit diffusion -p videos=s3://fleet/2026-11 --wait
    """
    from pipelines.client import Connection, Server, submit
    from pipelines.compiling import image_overrides

    parameters = collect_parameters(parameters_file, parameter, override)
    server = Server(Connection(endpoint=endpoint, namespace=namespace))
    run = submit(
        server,
        pipeline,
        parameters,
        images=image_overrides(image or []),
        gpu_type=gpu_type,
        encode_pods=encode_pods,
        experiment=experiment,
        name=name,
        service_account=service_account or None,
        caching=cache,
    )
    typer.echo(run.run_id)
    typer.echo(run.url)
    if wait:
        follow_to_the_end(server, run.run_id, namespace)
