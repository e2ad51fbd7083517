"""`cosmos-pipelines rollback MODEL`: put an earlier version in production again."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.commands.options import StorageRoot
from pipelines.forms import STORAGE_ROOT


def command(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in the history.")],
    to: Annotated[
        int | None,
        typer.Option("--to", help="Version to go to; default: the one before the present one."),
    ] = None,
    storage_root: StorageRoot = STORAGE_ROOT,
) -> None:
    """Move the production pointer back. The version left is not promoted again by itself."""
    from components.lib.registry import Registry, models_root, rollback
    from components.lib.store import ObjectStore

    registry = Registry(ObjectStore.from_env(), models_root(storage_root), model)
    pointer = rollback(registry, to, reason)
    typer.echo(
        f"{model}@{pointer.version} is in production (was {model}@{pointer.replaced}); "
        f"state {pointer.number}: {reason}"
    )
