"""Options that several commands share, and what their values come to.

A command's function takes these types; the names, short forms and helps are written here once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from components.harness.overrides import parse_value
from components.lib.contract import UserError
from pipelines.catalog import PIPELINES

WORKSPACE = Path(".cosmos")

Pipeline = Annotated[str, typer.Argument(help=f"One of: {', '.join(PIPELINES)}.")]
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
ParametersFile = Annotated[
    Path | None, typer.Option("--file", "-f", help="YAML file of parameters.")
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
EncodePods = Annotated[
    int, typer.Option("--encode-pods", help="Pods that share the encoding of latents.", min=1)
]
Experiment = Annotated[str, typer.Option("--experiment", help="Experiment that groups runs.")]
Account = Annotated[
    str, typer.Option("--service-account", help="ServiceAccount of the steps (manifests/base).")
]
StorageRoot = Annotated[
    str, typer.Option("--storage-root", help="Where outputs are, as s3://bucket/prefix.")
]
Workspace = Annotated[
    Path, typer.Option("--workspace", help="Folder for the store, logs, reports.")
]


def collect_parameters(
    path: Path | None, pairs: list[str] | None, overrides: list[str] | None
) -> dict[str, Any]:
    """Parameters of a file, then of ``name=value`` pairs; overrides are added to the list."""
    import yaml

    parameters: dict[str, Any] = {}
    if path is not None:
        if not path.is_file():
            raise UserError(f"There is no file {path}.")
        loaded = yaml.safe_load(path.read_text())
        if not isinstance(loaded, dict):
            raise UserError(f"{path} must hold a mapping of parameter names to values.")
        parameters |= loaded
    for pair in pairs or []:
        name, separator, value = pair.partition("=")
        if not separator:
            raise UserError(f"--parameter {pair} is not of the form name=value.")
        parameters[name] = parse_value(value)
    if overrides:
        parameters["overrides"] = [*parameters.get("overrides", []), *overrides]
    return parameters


def merge_parameters(preset: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's parameters with the user's on top; the lists of overrides are joined."""
    overrides = [*preset.get("overrides", []), *chosen.get("overrides", [])]
    return {**preset, **chosen, "overrides": overrides}
