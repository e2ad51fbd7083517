"""What each task of a run leaves behind in the object store, for the report at the run's end.

``<storage_root>/run_notes/<run>/<start>-<stage>.json`` is written when a task starts and again
when it ends, so a task that was killed is seen as one that never ended. The exit task of a
pipeline gets none of the other tasks' outputs (KFP allows that for neither local nor cluster
runs), and these notes are how it knows of them.

Notes are a by-product: a store that does not take one costs a line in the log, not the task.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationError

from components.lib import environment
from components.lib.contract import Frozen, UserError
from components.lib.stage import StageResult
from components.lib.store import ObjectStore
from components.lib.store.errors import StoreError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
log = logging.getLogger("cosmos")


class TaskNote(Frozen):
    """One task. ``started`` is in seconds since the epoch; ``error`` is the stage's sentence.

    ``what`` tells the tasks of one stage in one run apart (fetching several models, encoding
    several parts); a second note with the same ``what`` is another attempt.
    """

    stage: str
    what: str = ""
    started: float
    state: Literal["running", "succeeded", "failed"] = "running"
    seconds: float = 0.0
    manifest: str = ""
    reused: bool = False
    metrics: dict[str, float] = {}
    error: str = ""

    @property
    def name(self) -> str:
        """The stage, and which of its tasks where a run has several."""
        return f"{self.stage} ({self.what})" if self.what else self.stage


def run_id(env: Mapping[str, str]) -> str:
    """The id of the run that this process belongs to. Raises UserError when there is none."""
    name = env.get(environment.RUN_ID, "")
    if not _NAME.match(name):
        raise UserError(
            f"{environment.RUN_ID} is '{name}' and names no run. The pipelines set it; a report "
            "can only be made within a run."
        )
    return name


def notes_prefix(storage_root: str, run: str) -> str:
    """Where the notes of a run lie."""
    return f"{storage_root.rstrip('/')}/run_notes/{run}/"


class Note:
    """The note of the task that this process is; without a run it does nothing."""

    def __init__(self, uri: str, stage: str, what: str) -> None:
        self.uri, self.begun = uri, time.monotonic()
        self.note = TaskNote(stage=stage, what=what, started=time.time())

    @classmethod
    def begin(cls, env: Mapping[str, str], storage_root: str, stage: str, what: str = "") -> Note:
        """Write that the task has started."""
        name = env.get(environment.RUN_ID, "")
        if not _NAME.match(name):
            return cls("", stage, what)
        started = time.time_ns()
        found = cls(f"{notes_prefix(storage_root, name)}{started:020d}-{stage}.json", stage, what)
        found._write({})
        return found

    def end(self, result: StageResult | None = None, error: str = "") -> None:
        """Write how the task ended: with a result or with an error."""
        values: dict[str, Any] = {"state": "failed", "error": error}
        if result is not None:
            values = {
                "state": "succeeded",
                "manifest": result.manifest_uri,
                "reused": result.reused,
                "metrics": result.metrics,
            }
        self._write({**values, "seconds": round(time.monotonic() - self.begun, 3)})

    def _write(self, values: Mapping[str, Any]) -> None:
        if not self.uri:
            return
        self.note = self.note.model_copy(update=dict(values))
        try:
            ObjectStore.from_env().put_bytes(self.uri, self.note.model_dump_json().encode())
        except StoreError as problem:
            log.warning("No note for the run report: %s", problem)


def read_notes(store: ObjectStore, storage_root: str, run: str) -> list[TaskNote]:
    """The notes of a run, in the order in which its tasks started."""
    found = []
    for info in sorted(store.list(notes_prefix(storage_root, run)), key=lambda info: info.uri):
        try:
            found.append(TaskNote.model_validate_json(store.get_bytes(info.uri)))
        except ValidationError as error:
            raise UserError(f"{info.uri} is no note of a task. Move it elsewhere.") from error
    return found
