"""`cosmos-pipelines run`: a pipeline on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from components.lib.contract import UserError
from pipelines.catalog import preset_parameters
from pipelines.commands.options import (
    WORKSPACE,
    EncodePods,
    Overrides,
    Parameters,
    Pipeline,
    Workspace,
    collect_parameters,
    merge_parameters,
)
from pipelines.commands.output import show_local_run


def command(
    pipeline: Pipeline,
    videos: Annotated[
        str, typer.Option("--videos", help="Folder, file, s3://bucket/prefix or hf://datasets/….")
    ],
    local: Annotated[bool, typer.Option("--local", help="Run here, with child processes.")] = False,
    preset: Annotated[
        str, typer.Option(help="tiny: tiny models, made when missing. full: the official ones.")
    ] = "tiny",
    parameter: Parameters = None,
    override: Overrides = None,
    encode_pods: EncodePods = 1,
    workspace: Workspace = WORKSPACE,
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
    form = merge_parameters(
        preset_parameters(pipeline, preset, workspace, videos),
        collect_parameters(None, parameter, override),
    )
    with terminate_cleanly(), storage(workspace, external=external_store) as env:
        show_local_run(run_local(pipeline, form, workspace, env, encode_pods))
