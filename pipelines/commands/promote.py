"""`cosmos-pipelines promote`: put a trained and evaluated model in production by hand."""

from __future__ import annotations

from typing import Annotated

import typer

from components.lib.contract import UserError
from pipelines.commands.options import StorageRoot
from pipelines.forms import STORAGE_ROOT


def command(
    model: Annotated[str, typer.Argument(help="Name of the model, such as cosmos-7b.")],
    training: Annotated[str, typer.Option("--training", help="Manifest of the training run.")],
    evaluation: Annotated[str, typer.Option("--evaluation", help="Manifest of its evaluation.")],
    storage_root: StorageRoot = STORAGE_ROOT,
    force: Annotated[
        bool, typer.Option("--force", help="Promote whatever the gate says; needs --reason.")
    ] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in the history.")] = "",
) -> None:
    """Ask the gate, register the version, move the production pointer. Exits 1 when refused."""
    from components.lib.progress import default_progress
    from components.lib.store import ObjectStore
    from components.promotion.config import PromotionConfig
    from components.promotion.stage import run

    if force and not reason.strip():
        raise UserError("--force needs --reason: it is recorded with the promotion.")
    config = PromotionConfig(
        training=training,
        evaluation=evaluation,
        model_name=model,
        storage_root=storage_root,
        force=force,
        reason=reason,
    )
    result = run(config, ObjectStore.from_env(), default_progress())
    summary = result.manifest.summary
    for rule in summary["rules"]:
        typer.echo(f"{'passed' if rule['passed'] else 'NOT PASSED'}: {rule['sentence']}")
    typer.echo(f"{summary['decision']}; in production: {summary['production'] or 'nothing'}")
    if summary["decision"] == "refused":
        raise typer.Exit(1)
