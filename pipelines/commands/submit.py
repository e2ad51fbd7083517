"""`cosmos-pipelines submit`: start a pipeline on a KFP cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from components.harness.overrides import parse_value
from components.lib.contract import UserError
from pipelines.catalog import PIPELINES
from pipelines.commands.compile import EncodePods

Endpoint = Annotated[
    str | None, typer.Option("--endpoint", help="KFP address (else KF_PIPELINES_ENDPOINT, …).")
]
Namespace = Annotated[
    str | None,
    typer.Option("--namespace", "-n", help="Namespace of the runs (else KFP_NAMESPACE)."),
]
Parameters = Annotated[
    list[str] | None, typer.Option("--parameter", "-p", help="name=value of the pipeline's form.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="stage.field=value or trainer.max_steps=…; repeatable."),
]
Images = Annotated[
    list[str] | None,
    typer.Option("--image", help="data|preprocess|train=reference, best by digest. Repeatable."),
]
GpuType = Annotated[
    str | None,
    typer.Option("--gpu-type", help="Only nodes whose label nvidia.com/gpu.product is this."),
]
Account = Annotated[
    str, typer.Option("--service-account", help="ServiceAccount of the steps (manifests/base).")
]


def command(
    pipeline: Annotated[str, typer.Argument(help=f"One of: {', '.join(PIPELINES)}.")],
    parameter: Parameters = None,
    override: Overrides = None,
    parameters_file: Annotated[
        Path | None, typer.Option("--file", "-f", help="YAML file of parameters.")
    ] = None,
    image: Images = None,
    gpu_type: GpuType = None,
    encode_pods: EncodePods = 1,
    experiment: Annotated[str, typer.Option(help="Experiment that groups runs.")] = "cosmos",
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    cache: Annotated[bool, typer.Option(help="Let KFP reuse earlier results of steps.")] = True,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow the run; exit 1 unless it succeeds.")
    ] = False,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    service_account: Account = "cosmos-pipeline",
) -> None:
    """Start a run on a cluster and print its page; the pipeline is uploaded when it changed.

    Example: cosmos-pipelines submit diffusion -p videos=s3://fleet/2026-11 --wait
    """
    from pipelines.client import Connection, Server, submit
    from pipelines.commands.compile import image_overrides

    given = collect_parameters(parameters_file, parameter, override)
    server = Server(Connection(endpoint=endpoint, namespace=namespace))
    run = submit(
        server,
        pipeline,
        given,
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


def collect_parameters(
    path: Path | None, pairs: list[str] | None, overrides: list[str] | None
) -> dict[str, Any]:
    """Parameters of a file, then of ``name=value`` pairs; overrides are added to the list."""
    import yaml

    given: dict[str, Any] = {}
    if path is not None:
        if not path.is_file():
            raise UserError(f"There is no file {path}.")
        loaded = yaml.safe_load(path.read_text())
        if not isinstance(loaded, dict):
            raise UserError(f"{path} must hold a mapping of parameter names to values.")
        given |= loaded
    for pair in pairs or []:
        name, separator, value = pair.partition("=")
        if not separator:
            raise UserError(f"--parameter {pair} is not of the form name=value.")
        given[name] = parse_value(value)
    if overrides:
        given["overrides"] = [*given.get("overrides", []), *overrides]
    return given


def follow_to_the_end(server: Any, run_id: str, namespace: str | None) -> None:
    """Say what happens until the run ends. Exits with 1 unless it succeeded."""
    from pipelines.client import follow

    ended = follow(server, run_id, typer.echo, extra=training_progress(namespace))
    if ended.state != "SUCCEEDED":
        detail = f": {ended.error}" if ended.error else ""
        raise UserError(f"Run {run_id} ended as {ended.state}{detail}. See {ended.url}")
    typer.echo(f"run {run_id} succeeded")


def training_progress(namespace: str | None) -> Any:
    """A function run -> progress of its training job, or None without access to the cluster."""
    from pipelines.backend import cluster

    try:
        found = cluster.connect(namespace, lambda _line: None)
    except UserError:
        return None

    def line(info: Any) -> str | None:
        try:
            return cluster.progress_line(found, info.run_id)
        except UserError:  # progress is an extra: following the run goes on without it
            return None

    return line
