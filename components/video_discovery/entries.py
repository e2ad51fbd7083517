"""What every source of videos gives: entries in one fixed order, and the files behind them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

MAX_SIDECAR_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One file. ``key`` orders the listing and names the file in it."""

    key: str
    bytes: int
    version: str


class VideoSource(Protocol):
    """What discovery needs of a place that holds videos."""

    name: str
    single: bool  # the source is one file, which is a video whatever its name

    def entries(self) -> Iterator[Entry]:
        """All files, ascending by the UTF-8 bytes of their key."""

    def uri(self, entry: Entry, sha256: str) -> str:
        """URI under which later stages read this file."""

    def local(self, entry: Entry, folder: Path) -> Any:
        """Context manager: a local path of the file while it is open."""

    def read(self, key: str) -> bytes | None:
        """A small file's content, None when it is not there."""

    def publish(self, entry: Entry, path: Path, sha256: str) -> None:
        """Make a usable video available under its `uri`."""


def order_key(key: str) -> bytes:
    """What keys are ordered by: their bytes, as object stores do."""
    return os.fsencode(key)


def readable(key: str) -> str:
    """A key as text that can be written anywhere; bytes that are not UTF-8 become marks."""
    return os.fsencode(key).decode("utf-8", "replace")
