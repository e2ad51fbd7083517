"""Run a pipeline on this machine: `kfp.local` with child processes, an embedded S3 store.

The same compiled graph runs as on a cluster; only the store (SeaweedFS on loopback, unless the
environment names one) and the launcher (torchrun in place) differ. Stage outputs are content
addressed, so running again continues where an earlier run stopped.

kfp.local prints a good deal that only its authors need. Everything goes to a log file; the
terminal gets the stages' own lines.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from components.harness.overrides import check_overrides
from components.lib.contract import Frozen, UserError
from components.lib.environment import ERROR_FILE, PARENT_PID, PROGRESS_TTY, RUN_ID, RUN_JOURNAL
from components.lib.logs import LINE_MARK
from components.lib.run_files import REPORT


class StageRecord(Frozen):
    """One line of a run's journal: what a stage produced, and how long it took."""

    stage: str
    manifest: str
    reused: bool
    seconds: float
    report: bool = False


class LocalRun(Frozen):
    """A finished local run."""

    pipeline: str
    stages: tuple[StageRecord, ...]
    log: Path
    seconds: float
    reports: tuple[Path, ...] = ()


class _StageLines(io.TextIOBase):
    """A text stream that keeps everything in a log file and shows the stages' own lines."""

    def __init__(self, log: io.TextIOBase, screen: Any) -> None:
        self.log, self.screen, self.rest = log, screen, ""

    def write(self, text: str) -> int:
        self.log.write(text)
        lines = (self.rest + text).split("\n")
        self.rest = lines.pop()
        for line in lines:
            if LINE_MARK in line:
                self.screen.write(line[line.index(LINE_MARK) + len(LINE_MARK) :] + "\n")
                self.screen.flush()
        return len(text)

    def flush(self) -> None:
        self.log.flush()


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, which the stages' processes inherit, and restore them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def terminate_cleanly() -> Iterator[None]:
    """On SIGTERM, stop the stages and raise, so that the store is stopped too."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        import psutil

        for child in psutil.Process().children(recursive=True):
            if child.name() != "weed":
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.terminate()
        raise SystemExit(143)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def storage(workspace: Path, *, external: bool) -> Iterator[Mapping[str, str]]:
    """Environment of the object store: the embedded one, or the one the caller's names."""
    if external:
        if not os.environ.get("AWS_ENDPOINT_URL"):
            raise UserError(
                "--external-store needs AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY in the environment."
            )
        yield {}
        return
    from components.lib.store.embedded import EmbeddedStore

    with EmbeddedStore(workspace) as store:
        yield store.env


def run_local(
    name: str,
    parameters: Mapping[str, Any],
    workspace: Path,
    store_env: Mapping[str, str],
    encode_pods: int = 1,
) -> LocalRun:
    """Run a pipeline to its end. Raises UserError with the failing stage's own sentence.

    ``parameters`` are the pipeline's; ``store_env`` is what `storage` yields. Logs, KFP's local
    outputs and a copy of each report lie under ``workspace``. The ``encode_pods`` of a cluster are
    processes here, of which kfp.local runs two at a time.
    """
    check_overrides(parameters.get("overrides", []))
    stamp = time.strftime("%Y%m%d-%H%M%S")
    runs = workspace / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    stem = f"{name}-{stamp}-{os.getpid()}"
    journal, sentence, log = (runs / f"{stem}.{ending}" for ending in ("jsonl", "error", "log"))
    values = {
        **store_env,
        RUN_JOURNAL: str(journal),
        ERROR_FILE: str(sentence),
        PARENT_PID: str(os.getpid()),
        RUN_ID: stem,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
        # threads that spin while they wait are nine times slower when the cores are shared
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    }
    if sys.stdout.isatty():
        values[PROGRESS_TTY] = os.ttyname(sys.stdout.fileno())
    started = time.monotonic()
    with environment(values), log.open("w") as stream:
        failed = _execute(name, parameters, workspace / "kfp" / stem, stream, encode_pods)
    records = tuple(
        StageRecord.model_validate(json.loads(line))
        for line in (journal.read_text().splitlines() if journal.exists() else [])
    )
    reports = copy_reports(records, workspace / "reports", name, store_env)
    if failed:
        if sentence.exists():
            where = f" Report: {reports[-1].resolve()}" if reports else ""
            raise UserError(sentence.read_text() + where)
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise UserError(f"The pipeline '{name}' failed. The whole log is {log}; it ends:\n{tail}")
    return LocalRun(
        pipeline=name,
        stages=records,
        log=log,
        seconds=time.monotonic() - started,
        reports=reports,
    )


def _execute(
    name: str,
    parameters: Mapping[str, Any],
    outputs: Path,
    log: io.TextIOBase,
    encode_pods: int,
) -> bool:
    """Run the graph; True when it failed. Output goes through `_StageLines`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kfp warns of images without 'python' and of pydantic
        from kfp import local

        from pipelines import catalog, kfp_private, profiles

        screen = sys.stdout
        with (
            contextlib.redirect_stdout(_StageLines(log, screen)),
            kfp_private.values_as_they_are(),
        ):
            local.init(
                runner=local.SubprocessRunner(use_venv=False),
                pipeline_root=str(outputs),
                raise_on_error=True,
            )
            try:
                profile = profiles.Profile(cluster=False, encode_pods=encode_pods)
                catalog.load(name, profile)(**parameters)
            except RuntimeError as error:  # what kfp.local raises when a task fails
                log.write(f"{error}\n")
                return True
    return False


def copy_reports(
    records: tuple[StageRecord, ...], folder: Path, name: str, store_env: Mapping[str, str]
) -> tuple[Path, ...]:
    """Copy the report of every stage that has one to ``<pipeline>-<stage>.html`` in ``folder``.

    They are those of the pipeline's last run; the store keeps the reports of all.
    """
    from components.lib.manifest import load_manifest
    from components.lib.store import ObjectStore

    copies = []
    for record in records:
        if not record.report:
            continue
        store = ObjectStore.from_env({**os.environ, **store_env})
        manifest = load_manifest(record.manifest, store)
        folder.mkdir(parents=True, exist_ok=True)
        entry = manifest.entry(REPORT)
        target = folder / f"{name}-{record.stage.replace('_', '-')}.html"
        store.get_file(manifest.file_uri(REPORT), target, sha256=entry.sha256)
        copies.append(target)
    return tuple(copies)
