"""`cosmos-pipelines store`: the embedded object store of a workspace, for other commands."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import WORKSPACE


def command(
    arguments: Annotated[
        list[str] | None, typer.Argument(help="Command to run with the store, after '--'.")
    ] = None,
    workspace: Annotated[Path, typer.Option(help="Folder of the workspace.")] = WORKSPACE,
) -> None:
    """Start the store that local runs keep their outputs in.

    With a command, run it with AWS_ENDPOINT_URL and the credentials set, then stop the store:
    cosmos-pipelines store -- cosmos-pipelines lineage tiny-diffusion@1
    Without one, print the export lines and keep the store running until Ctrl-C.
    """
    from pipelines.local import storage, terminate_cleanly

    with terminate_cleanly(), storage(workspace, external=False) as env:
        if arguments:
            done = subprocess.run(arguments, env={**os.environ, **env}, check=False)
            sys.exit(done.returncode)
        for name, value in env.items():
            typer.echo(f"export {name}={value}")
        sys.stdout.flush()
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            typer.echo("stopped")
