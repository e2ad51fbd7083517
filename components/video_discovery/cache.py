"""What discovery has learned about files, kept in object storage between runs.

The cache is one file of JSON lines in the order of the listing, so a run reads it beside the
listing and holds one line at a time. While probing, finished stretches are saved as parts; a run
that is killed leaves them, and the next one merges them in. The cache decides nothing: losing it
costs probing again.
"""

from __future__ import annotations

import gzip
import heapq
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from components.lib.manifest import digest_json
from components.lib.store import ObjectStore
from components.lib.video.inspection import INSPECTION_VERSION, Inspection
from components.video_discovery.entries import Entry, order_key

PART_LINES = 1000


class InspectionCache:
    """Cache of one source under one set of inspection settings."""

    def __init__(
        self, store: ObjectStore, storage_root: str, source: str, settings: Any, folder: Path
    ) -> None:
        identity = digest_json([source, settings, INSPECTION_VERSION])
        self.prefix = f"{storage_root.rstrip('/')}/video_discovery/cache/{identity[:32]}/"
        self.store, self.folder = store, folder
        self.old = self._open_old()
        self.ahead = next(self.old, None)
        self.fresh_path = folder / "cache.jsonl.gz"
        self.file = self.fresh_path.open("wb")
        self.fresh = gzip.GzipFile("", "wb", compresslevel=1, fileobj=self.file, mtime=0)
        self.part: list[bytes] = []
        self.parts = 0

    def get(self, entry: Entry) -> Inspection | None:
        """What is known of this version of a file. Ask in the order of the listing."""
        here = order_key(entry.key)
        while self.ahead is not None and order_key(self.ahead["key"]) < here:
            self.ahead = next(self.old, None)
        known: Inspection | None = None
        while self.ahead is not None and order_key(self.ahead["key"]) == here:
            if self.ahead["version"] == entry.version:
                try:
                    known = Inspection.model_validate(self.ahead["inspection"])
                except ValidationError:
                    known = None
            self.ahead = next(self.old, None)
        return known

    def put(self, entry: Entry, inspection: Inspection, *, new: bool) -> None:
        """Keep a result. In the order of the listing; ``new`` if it was not from the cache."""
        value = {
            "key": entry.key,
            "version": entry.version,
            "inspection": inspection.model_dump(mode="json"),
        }
        line = json.dumps(value, separators=(",", ":")).encode() + b"\n"
        self.fresh.write(line)
        if new:
            self.part.append(line)
            if len(self.part) >= PART_LINES:
                self.save_part()

    def save_part(self) -> None:
        """Make what was learned since the last part survive this process."""
        if self.part:
            name = f"part-{digest_json(self.part[0].decode())[:16]}.jsonl.gz"
            data = gzip.compress(b"".join(self.part), compresslevel=1, mtime=0)
            self.store.put_bytes(self.prefix + name, data)
            self.part = []
            self.parts += 1

    def close(self, *, complete: bool) -> None:
        """Save; a complete pass over the source replaces everything that was there."""
        self.fresh.close()
        self.file.close()
        if not complete:
            self.save_part()
            return
        self.store.put_file(self.fresh_path, self.prefix + "all.jsonl.gz")
        for info in list(self.store.list(self.prefix + "part-")):
            self.store.delete(info.uri)

    def _open_old(self) -> Iterator[dict[str, Any]]:
        streams = []
        for number, info in enumerate(list(self.store.list(self.prefix))):
            path = self.folder / f"cache-{number}.jsonl.gz"
            self.store.get_file(info.uri, path)
            streams.append(_lines(path))
        return heapq.merge(*streams, key=lambda value: order_key(value["key"]))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rb") as stream:
        for line in stream:
            yield json.loads(line)
