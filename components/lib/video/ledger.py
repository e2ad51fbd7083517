"""The ledger: which videos have been trained on, and by which run.

One object per run lists the contents (sha256) that the run used. Discovery reads the ledger to
find what is new; it never writes it. The stage that finishes a run commits it, so the videos of a
failed run stay new. Committing again under the same run is harmless: the object is the same.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from components.lib.contract import UserError
from components.lib.video.records import read_records

if TYPE_CHECKING:
    from components.lib.manifest import Manifest
    from components.lib.store import ObjectStore

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


def ledger_prefix(storage_root: str, name: str) -> str:
    """Where the ledger ``name`` lies. Raises UserError for a name that is no plain word."""
    if not _NAME.match(name):
        raise UserError(f"'{name}' cannot name a ledger: use letters, digits, '.', '_' and '-'.")
    return f"{storage_root.rstrip('/')}/ledger/{name}/"


def commit_run(store: ObjectStore, storage_root: str, name: str, run: str, videos: Manifest) -> str:
    """Record that ``run`` has processed the usable videos of a ``videos`` manifest.

    Returns the URI of the ledger's new object.
    """
    if not _NAME.match(run):
        raise UserError(f"'{run}' cannot name a run: use letters, digits, '.', '_' and '-'.")
    head = {"run": run, "videos": videos.uri, "content": videos.content}
    lines = [json.dumps(head, sort_keys=True)]
    lines += sorted({record.sha256 for record in read_records(videos, store)})
    uri = f"{ledger_prefix(storage_root, name)}{run}.txt"
    store.put_bytes(uri, ("\n".join(lines) + "\n").encode())
    return uri


def processed(store: ObjectStore, storage_root: str, name: str) -> set[bytes]:
    """Digests (32 bytes each) of all videos in the ledger; empty when there is none yet."""
    digests: set[bytes] = set()
    for info in store.list(ledger_prefix(storage_root, name)):
        with store.open_read(info.uri) as stream:
            next(stream, None)
            digests.update(bytes.fromhex(line.decode().strip()) for line in stream)
    return digests


def runs(store: ObjectStore, storage_root: str, name: str) -> list[dict[str, Any]]:
    """The runs in a ledger: {"run", "videos" (manifest prefix), "content"} each, by name."""
    found = []
    for info in store.list(ledger_prefix(storage_root, name)):
        with store.open_read(info.uri) as stream:
            found.append(json.loads(stream.readline()))
    return found
