"""The contract every stage keeps: a frozen config in, a result out, errors that are sentences.

A stage is a function ``run(config, store, progress) -> StageResult``. A KFP task, the command
``cosmos-pipelines stage NAME`` and a unit test all call that same function, so whatever works in
a test works on a cluster.

Two kinds of config field do not decide *what* a stage computes and therefore stay out of its
content address (see `components.lib.stage`): `manifest_input` fields, which enter the address as
the content digest of the manifest they name, and `operational` fields (worker counts, devices).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

_ROLE = "cosmos_role"


class Frozen(BaseModel):
    """A value: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class UserError(Exception):
    """Something the user can mend. The message says what, which file or key, and what to do."""


def manifest_input(description: str, *, default: Any = ...) -> Any:
    """A config field that names an input manifest: an ``s3://`` URI or a local path."""
    return Field(default, description=description, json_schema_extra={_ROLE: "manifest"})


def operational(default: Any, description: str, **constraints: Any) -> Any:
    """A config field that changes how fast or where a stage runs, never what it computes."""
    return Field(
        default, description=description, json_schema_extra={_ROLE: "operational"}, **constraints
    )


class StageConfig(Frozen):
    """Base of every stage's config."""

    storage_root: str = operational(
        "s3://cosmos/runs",
        "Where outputs go, as s3://bucket/prefix. Each stage adds its name and content address.",
    )

    @classmethod
    def field_role(cls, name: str) -> str | None:
        """``"manifest"``, ``"operational"``, or None for a field that decides the result."""
        extra = cls.model_fields[name].json_schema_extra
        role = extra.get(_ROLE) if isinstance(extra, dict) else None
        return str(role) if role else None

    def deciding_fields(self) -> dict[str, Any]:
        """The fields that enter the content address, as JSON values."""
        values = self.model_dump(mode="json")
        return {name: values[name] for name in values if self.field_role(name) is None}

    def manifest_refs(self) -> dict[str, str]:
        """Input name -> URI or path, of the manifest inputs that are set."""
        values = self.model_dump(mode="json")
        names = [name for name in type(self).model_fields if self.field_role(name) == "manifest"]
        return {name: str(values[name]) for name in names if values[name]}


class ProgressTask(Protocol):
    """One piece of long work that is being watched."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Say that ``amount`` more units are done."""


class Progress(Protocol):
    """Where a stage says what it is doing. Implementations: `components.lib.progress`."""

    def log(self, message: str) -> None:
        """One line for the step's log."""

    def task(
        self, what: str, total: float | None = None, unit: str = ""
    ) -> AbstractContextManager[ProgressTask]:
        """Watch work of ``total`` units (None: unknown) while the context is open."""
