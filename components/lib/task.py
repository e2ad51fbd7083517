"""What the body of a KFP component calls: artifacts in, a stage's `run`, artifacts out.

KFP artifacts are duck-typed here (``.path``, ``.metadata``), so this module needs no kfp. A
`UserError` ends the step with its sentence as the last line of the log; when COSMOS_ERROR_FILE
names a file, the sentence is written there too, for the local runner to repeat.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from components.lib.contract import UserError
from components.lib.logs import configure_logging
from components.lib.overrides import make_config
from components.lib.progress import default_progress
from components.lib.stage import StageResult
from components.lib.store import ObjectStore

ERROR_FILE_VARIABLE = "COSMOS_ERROR_FILE"
log = logging.getLogger("cosmos")


class Artifact(Protocol):
    """The part of a KFP artifact that is used here."""

    path: str
    metadata: dict[str, Any]


def run_task(
    stage: str,
    parameters: Mapping[str, Any],
    output: Artifact,
    *,
    inputs: Mapping[str, Artifact | None] | None = None,
    metrics: Artifact | None = None,
    html: Artifact | None = None,
    overrides: Sequence[str] = (),
) -> None:
    """Run a stage as a KFP task: read input manifests, write the output manifest.

    ``inputs`` maps config fields to artifacts that hold manifests. ``html`` receives the output's
    ``report.html``. Exits with status 1 after a `UserError`.
    """
    configure_logging()
    try:
        _run(stage, dict(parameters), output, dict(inputs or {}), metrics, html, overrides)
    except UserError as error:
        report_error(f"{stage}: {error}")
        sys.exit(1)


def report_error(sentence: str) -> None:
    """Log a user error and leave it where the local runner looks for it."""
    log.error("%s", sentence)
    if name := os.environ.get(ERROR_FILE_VARIABLE):
        Path(name).write_text(sentence)


def _run(
    stage: str,
    parameters: dict[str, Any],
    output: Artifact,
    inputs: dict[str, Artifact | None],
    metrics: Artifact | None,
    html: Artifact | None,
    overrides: Sequence[str],
) -> None:
    refs = {name: artifact.path for name, artifact in inputs.items() if artifact is not None}
    config = make_config(stage, {**parameters, **refs}, overrides)
    store = ObjectStore.from_env()
    module = importlib.import_module(f"components.{stage}.stage")
    result: StageResult = module.run(config, store, default_progress())
    write_artifact(output.path, result.manifest.model_dump_json(indent=1).encode())
    output.metadata.update(
        {
            "manifest": result.manifest_uri,
            "content": result.manifest.content,
            "kind": result.manifest.kind,
            "reused": result.reused,
        }
    )
    if metrics is not None:
        metrics.metadata.update(result.metrics)
    if html is not None:
        entry = result.manifest.entry("report.html")
        data = store.get_bytes(result.manifest.file_uri("report.html"), sha256=entry.sha256)
        write_artifact(html.path, data)


def write_artifact(path: str, data: bytes) -> None:
    """Write a small local file whole, making its folder."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
