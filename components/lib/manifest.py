"""Manifests: the small JSON files that travel between stages while the bytes stay in the store.

A manifest lists every file of one stage output with its sha256 and size. It is written last, so
an output that has a manifest is complete, and nothing without one is ever read. Its `content`
digest covers what the files hold and not where they lie or how long they took to make; two
outputs with equal content are interchangeable as inputs of the next stage.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import StringConstraints, ValidationError

from components.lib.contract import Frozen, UserError

if TYPE_CHECKING:
    from components.lib.store import ObjectStore

MANIFEST_NAME = "manifest.json"

#: What a manifest is of. Each stage names its own; see `StageSpec`.
Kind = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$")]
#: The kinds that hold a model under ``model/``.
MODEL_KINDS = ("checkpoint", "training-run")


class FileEntry(Frozen):
    """One file of an output. ``path`` is relative to the manifest's ``uri``."""

    path: str
    bytes: int
    sha256: str
    meta: dict[str, Any] = {}


class InputRef(Frozen):
    """Which manifest a stage read: where it lay and the digest of what it held."""

    uri: str
    content: str


class Manifest(Frozen):
    """What one run of a stage produced. ``uri`` is the prefix of its files and ends with ``/``."""

    schema_version: Literal[1] = 1
    kind: Kind
    stage: str
    stage_version: str
    address: str
    uri: str
    files: tuple[FileEntry, ...]
    inputs: dict[str, InputRef] = {}
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    timing: dict[str, float] = {}

    @property
    def content(self) -> str:
        """sha256 over kind and files (path, sha256, size, meta), in path order."""
        files = [
            entry.model_dump(mode="json") for entry in sorted(self.files, key=lambda e: e.path)
        ]
        return digest_json({"kind": self.kind, "files": files})

    def file_uri(self, path: str) -> str:
        """URI of one of its files."""
        return self.uri + path

    def entry(self, path: str) -> FileEntry:
        """The file with this path. Raises UserError when the manifest does not list it."""
        for entry in self.files:
            if entry.path == path:
                return entry
        raise UserError(f"{self.uri}{MANIFEST_NAME} lists no file '{path}'.")


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest_json(value: Any) -> str:
    """sha256 of the canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def parse_manifest(data: bytes, name: str) -> Manifest:
    """Manifest from its JSON. Raises UserError naming the file when it is not one."""
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(
            f"{name} is not a manifest: {where}: {first['msg']}. "
            "Give the manifest.json that an earlier stage wrote."
        ) from error


def reference(path: str) -> str:
    """The manifest at ``path``: itself, or the one in that folder or under that prefix."""
    return path if path.endswith(".json") else f"{path.rstrip('/')}/{MANIFEST_NAME}"


def load_manifest(ref: str, store: ObjectStore) -> Manifest:
    """Read a manifest from an ``s3://`` URI or a local path."""
    if ref.startswith("s3://"):
        return parse_manifest(store.get_bytes(ref), ref)
    path = Path(ref)
    if not path.is_file():
        raise UserError(f"There is no manifest at {ref}. Give the output of an earlier stage.")
    return parse_manifest(path.read_bytes(), ref)
