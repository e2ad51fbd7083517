"""`cosmos-pipelines run`: a pipeline on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from components.harness.overrides import parse_value
from components.lib.contract import UserError
from pipelines.catalog import PIPELINES
from pipelines.commands.compile import EncodePods

WORKSPACE = Path(".cosmos")


def command(
    pipeline: Annotated[str, typer.Argument(help=f"One of: {', '.join(PIPELINES)}.")],
    videos: Annotated[
        str, typer.Option("--videos", help="Folder, file, s3://bucket/prefix or hf://datasets/….")
    ],
    local: Annotated[bool, typer.Option("--local", help="Run here, with child processes.")] = False,
    preset: Annotated[
        str, typer.Option(help="tiny: tiny models, made when missing. full: the official ones.")
    ] = "tiny",
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", help="name=value of the pipeline's form."),
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="stage.field=value or trainer.max_steps=…; repeatable."),
    ] = None,
    encode_pods: EncodePods = 1,
    workspace: Annotated[
        Path, typer.Option(help="Folder for the store, logs, reports.")
    ] = WORKSPACE,
    external_store: Annotated[
        bool, typer.Option(help="Use the store that AWS_ENDPOINT_URL names.")
    ] = False,
) -> None:
    """Run a pipeline on this machine; run it again to continue or to reuse what is there.

    Example: cosmos-pipelines run diffusion --local --videos ~/drives --set trainer.max_steps=50
    """
    if not local:
        raise UserError(
            "Say where to run: --local for this machine, "
            "or 'cosmos-pipelines submit' for a cluster."
        )
    from pipelines.local import run_local, storage, terminate_cleanly

    workspace = workspace.resolve()
    parameters = build_parameters(pipeline, preset, workspace, videos)
    for pair in parameter or []:
        name, separator, value = pair.partition("=")
        if not separator:
            raise UserError(f"--parameter {pair} is not of the form name=value.")
        parameters[name] = parse_value(value)
    parameters["overrides"] = [*parameters.get("overrides", []), *(override or [])]
    with terminate_cleanly(), storage(workspace, external=external_store) as env:
        show(run_local(pipeline, parameters, workspace, env, encode_pods))


def build_parameters(pipeline: str, preset: str, workspace: Path, videos: str) -> dict[str, Any]:
    """The pipeline's parameters for a preset. Makes the tiny checkpoints when they are missing."""
    from pipelines.catalog import tiny_preset

    if pipeline not in PIPELINES:
        raise UserError(f"There is no pipeline '{pipeline}'. There are: {', '.join(PIPELINES)}.")
    if "://" not in videos:
        if not Path(videos).exists():
            raise UserError(f"There is no file or folder {videos}. Give --videos a path or a URI.")
        videos = str(Path(videos).resolve())
    if preset == "full":
        return {"videos": videos, "launcher": "process"}
    if preset != "tiny":
        raise UserError(f"There is no preset '{preset}'. There are: tiny, full.")
    checkpoints = workspace / "checkpoints" / "tiny"
    if not (checkpoints / "complete.json").is_file():
        from pipelines.commands.make_checkpoint import make_tiny

        make_tiny(checkpoints)
    return {"videos": videos, **tiny_preset(pipeline, checkpoints)}


def show(run: Any) -> None:
    """Print what each stage did and where the reports are."""
    width = max((len(record.stage) for record in run.stages), default=0)
    for record in run.stages:
        state = "reused" if record.reused else f"{record.seconds:6.1f} s"
        typer.echo(f"  {record.stage:<{width}}  {state:>8}  {record.manifest}")
    for report in run.reports:
        typer.echo(f"report: {report.resolve()}")
    typer.echo(f"{run.pipeline}: finished in {run.seconds:.0f} s (log: {run.log})")
