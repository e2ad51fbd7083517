"""S3 access."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.lib.contract import UserError


class StoreError(UserError):
    """The store refused or failed; the message says which URI and what to do."""


@dataclass(frozen=True)
class ObjectInfo:
    """One object. ``sha256`` and ``meta`` are what this project stored with it, None/{} otherwise."""

    uri: str
    bytes: int
    etag: str = ""
    modified: float = 0.0
    sha256: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)


class ObjectStore:
    """Interface being filled in."""

    def stat(self, uri: str) -> ObjectInfo | None:
        raise StoreError(uri)

    def get_bytes(self, uri: str, sha256: str | None = None) -> bytes:
        raise StoreError(uri)

    def put_bytes(self, uri: str, data: bytes, meta: Mapping[str, Any] | None = None) -> ObjectInfo:
        raise StoreError(uri)

    def put_file(self, source: Path, uri: str, meta: Mapping[str, Any] | None = None) -> ObjectInfo:
        raise StoreError(uri)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        raise StoreError(prefix)
