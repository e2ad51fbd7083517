"""`cosmos-pipelines lineage MODEL@N`: where a model version comes from, and who used a video."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from components.lib.contract import UserError
from pipelines.commands.options import StorageRoot
from pipelines.forms import STORAGE_ROOT

if TYPE_CHECKING:
    from components.lib.store import ObjectStore


def command(
    model: Annotated[str, typer.Argument(help="MODEL@N, or MODEL for what is in production.")] = "",
    video: Annotated[
        str,
        typer.Option(
            "--video",
            help="Instead: list the model versions that used this video (its uri or its sha256).",
        ),
    ] = "",
    storage_root: StorageRoot = STORAGE_ROOT,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print every source video with its hash, every stage with config and version, and the runs.

    With --video it answers the reverse question, for when a video must be erased.
    """
    from components.lib.registry import models_root
    from components.lib.store import ObjectStore

    if bool(model) == bool(video):
        raise UserError("Give either a model version (MODEL@N) or --video URI.")
    store = ObjectStore.from_env()
    root = models_root(storage_root)
    typer.echo(
        _users(store, root, video, as_json) if video else _origin(store, root, model, as_json)
    )


def _origin(store: ObjectStore, root: str, model: str, as_json: bool) -> str:
    from components.lib.lineage import LINEAGE_NAME, parse_lineage
    from components.lib.registry import Registry, parse_model

    name, number = parse_model(model)
    registry = Registry(store, root, name)
    if number is None:
        head = registry.production()
        if head is None:
            raise UserError(f"Nothing of {name} is in production. Name a version: {name}@N.")
        number = head.version
    manifest = registry.load(number)
    entry = manifest.entry(LINEAGE_NAME)
    uri = manifest.file_uri(LINEAGE_NAME)
    lineage = parse_lineage(store.get_bytes(uri, sha256=entry.sha256), uri)
    if as_json:
        return lineage.model_dump_json(indent=1)
    lines = [f"{name}@{number}", "", "stages, in the order they ran:"]
    for step in lineage.steps:
        via = f"  (via {step.via})" if step.via else ""
        lines.append(f"  {step.stage} version {step.stage_version}{via}")
        lines.append(f"    {step.uri}")
        lines += [f"    {key} = {value}" for key, value in sorted(step.config.items())]
    lines += ["", f"{len(lineage.videos)} source videos:"]
    for item in lineage.videos:
        via = f"  via {item.via}" if item.via else ""
        lines.append(f"  {item.sha256}  {item.split:<10}  {item.uri}{via}")
        lines += [f"  {'':<64}  {'':<10}  {name}  (the same content)" for name in item.also]
    lines += [f"  no longer in the store: {uri}" for uri in lineage.missing]
    return "\n".join(lines)


def _users(store: ObjectStore, root: str, video: str, as_json: bool) -> str:
    import json

    from components.lib.erasure import content_of
    from components.lib.lineage import models_that_used

    users = models_that_used(store, root, video)
    content = "" if users else content_of(store, video)
    if content:  # a name that no run has seen, of a content that some run may have
        users = models_that_used(store, root, content)
    if as_json:
        return json.dumps(
            [{"model": name, **item.model_dump(mode="json")} for name, item in users], indent=1
        )
    if not users:
        hint = "" if content else " If it was deleted, ask with its sha256."
        return f"No model version under {root} used {video}.{hint}"
    return "\n".join(
        f"{name}  {item.split:<10}  {item.uri}" + (f"  via {item.via}" if item.via else "")
        for name, item in users
    )
