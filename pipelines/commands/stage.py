"""`cosmos-pipelines stage NAME --config FILE`: one stage alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from components.harness.overrides import STAGES, make_config, stage_config
from components.lib.contract import UserError


def command(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(STAGES)}.")],
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="YAML or JSON file with the stage's fields."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="stage.field=value; repeatable, wins over the file."),
    ] = None,
    fields: Annotated[
        bool, typer.Option("--fields", help="List the stage's fields and exit.")
    ] = False,
) -> None:
    """Run one stage alone and print the URI of its manifest.

    The object store comes from AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
    Inputs are manifest.json files of earlier stages: s3:// URIs or local paths.
    """
    if fields:
        typer.echo(describe_fields(name))
        return
    values = _read(config) if config else {}
    settings = make_config(name, values, overrides or [])
    import importlib

    from components.lib.progress import default_progress
    from components.lib.store import ObjectStore

    module = importlib.import_module(f"components.{name}.stage")
    result = module.run(settings, ObjectStore.from_env(), default_progress())
    typer.echo(result.manifest_uri)


def describe_fields(name: str) -> str:
    """Every field of a stage's config: name, default and meaning, one a line."""
    lines = []
    for field, info in stage_config(name).model_fields.items():
        default = (
            "required" if info.is_required() else repr(info.get_default(call_default_factory=True))
        )
        lines.append(f"{field} ({default})\n    {info.description or ''}")
    return "\n".join(lines)


def _read(path: Path) -> dict[str, object]:
    import yaml

    if not path.is_file():
        raise UserError(f"There is no config file {path}.")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML or JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a mapping of field names to values.")
    return values
