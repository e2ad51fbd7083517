"""What the body of a KFP component calls: artifacts in, a stage's `run`, artifacts out.

KFP artifacts are duck-typed here (``.path``, ``.metadata``), so this module needs no kfp. A
`UserError` ends the step with its sentence as the last line of the log.

The local runner sets three variables: COSMOS_ERROR_FILE, where that sentence is also written;
COSMOS_RUN_JOURNAL, which gets a line per finished stage; and COSMOS_PARENT_PID, the process
whose death ends this one, so that a killed run leaves nothing working behind it.

Where COSMOS_RUN_ID names the run, each task also leaves a note in the object store
(`components.harness.run_notes`), from which the run report is made when the run has ended.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from components.harness.overrides import make_config
from components.harness.run_notes import Note, run_id
from components.lib import environment
from components.lib.contract import UserError
from components.lib.logs import configure_logging
from components.lib.manifest import Manifest
from components.lib.progress import default_progress
from components.lib.run_files import REPORT, SUMMARY
from components.lib.stage import StageResult
from components.lib.store import ObjectStore

_WATCH_S = 0.5
# by these parameters the tasks of one stage in one run differ
_TELLS_APART = ("role", "part_index")
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
    markdown: Artifact | None = None,
    overrides: Sequence[str] = (),
) -> Manifest:
    """Run a stage as a KFP task: read input manifests, write the output manifest, return it.

    ``inputs`` maps config fields to artifacts that hold manifests. ``html`` and ``markdown``
    receive the output's ``report.html`` and ``summary.md``. Exits with status 1 after a
    `UserError`.
    """
    configure_logging()
    _end_with_runner()
    what = ", ".join(f"{key}={parameters[key]}" for key in _TELLS_APART if key in parameters)
    note = Note.begin(os.environ, str(parameters["storage_root"]), stage, what)
    try:
        result = _run(stage, dict(parameters), dict(inputs or {}), overrides)
    except UserError as error:
        report_error(f"{stage}: {error}")
        note.end(error=str(error))
        sys.exit(1)
    note.end(result)
    _hand_over(result, output, metrics, html, markdown)
    return result.manifest


def run_report_task(
    parameters: Mapping[str, str],
    ended: str,
    error: str,
    *,
    html: Artifact,
    markdown: Artifact,
    output: Artifact,
) -> None:
    """Write the report of the run that ends here; ``ended`` is KFP's word for how it ended.

    ``parameters`` are storage_root and title. The sentence of a stage that failed stays the one
    that the local runner shows.
    """
    from components.harness.run_report import write_run_report

    configure_logging()
    _end_with_runner()
    try:
        started = time.monotonic()
        result = write_run_report(
            ObjectStore.from_env(), parameters["storage_root"], parameters["title"],
            run_id(os.environ), ended, error, default_progress(),
        )  # fmt: skip
        _journal("run_report", result, time.monotonic() - started)
    except UserError as problem:
        report_error(f"run report: {problem}")
        sys.exit(1)
    _hand_over(result, output, None, html, markdown)


def _hand_over(
    result: StageResult,
    output: Artifact,
    metrics: Artifact | None,
    html: Artifact | None,
    markdown: Artifact | None,
) -> None:
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
        # what was waited for and how fast it went, beside what came out
        metrics.metadata.update({**result.manifest.timing, **result.metrics})
    for artifact, name in ((html, REPORT), (markdown, SUMMARY)):
        if artifact is not None:
            entry = result.manifest.entry(name)
            uri = result.manifest.file_uri(name)
            write_artifact(artifact.path, ObjectStore.from_env().get_bytes(uri, entry.sha256))


def report_error(sentence: str) -> None:
    """Log a user error and leave it where the local runner looks for it: the first one stays."""
    log.error("%s", sentence)
    name = os.environ.get(environment.ERROR_FILE)
    if name and not Path(name).exists():
        Path(name).write_text(sentence)


def _run(
    stage: str,
    parameters: dict[str, Any],
    inputs: dict[str, Artifact | None],
    overrides: Sequence[str],
) -> StageResult:
    refs = {name: artifact.path for name, artifact in inputs.items() if artifact is not None}
    config = make_config(stage, {**parameters, **refs}, overrides)
    module = importlib.import_module(f"components.{stage}.stage")
    started = time.monotonic()
    result: StageResult = module.run(config, ObjectStore.from_env(), default_progress())
    _journal(stage, result, time.monotonic() - started)
    return result


def _journal(stage: str, result: StageResult, seconds: float) -> None:
    if name := os.environ.get(environment.RUN_JOURNAL):
        record = {
            "stage": stage,
            "manifest": result.manifest_uri,
            "reused": result.reused,
            "seconds": round(seconds, 3),
            "report": any(entry.path == REPORT for entry in result.manifest.files),
        }
        with Path(name).open("a") as stream:
            stream.write(json.dumps(record) + "\n")


def _end_with_runner() -> None:
    """End this process and its children when the local runner's process is gone.

    The runner starts stages through a shell, so the kernel's parent-death signal would watch the
    wrong process.
    """
    runner = os.environ.get(environment.PARENT_PID)
    if runner is None:
        return
    import psutil

    def watch() -> None:
        while psutil.pid_exists(int(runner)):
            time.sleep(_WATCH_S)
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="runner-watch").start()


def write_artifact(path: str, data: bytes) -> None:
    """Write a small local file whole, making its folder."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
