"""The ledger: which videos have been trained on, and by which run.

One object per run lists the contents (sha256) that the run used, each with its split and the
group (drive) it was split by, the latter as a JSON string: whatever characters a drive's name has,
a video is one line. Discovery reads the ledger to find what is new; it never writes it.
The stage that finishes a run commits it, so the videos of a failed run stay new. Committing again
under the same run is harmless: the object is the same.

The splits are kept because a video that was once held out must stay held out when it comes back in
a sample of old video, and later videos of its drive with it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from components.lib.contract import UserError
from components.lib.video.records import Split, read_records

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
    lines += sorted(
        {
            f"{record.sha256} {record.split or 'train'} {json.dumps(record.group)}"
            for record in read_records(videos, store)
        }
    )
    uri = f"{ledger_prefix(storage_root, name)}{run}.txt"
    store.put_bytes(uri, ("\n".join(lines) + "\n").encode())
    return uri


@dataclass
class Processed:
    """What a ledger holds: the split of every content (32-byte sha256) and of every group."""

    videos: dict[bytes, Split] = field(default_factory=dict)
    groups: dict[str, Split] = field(default_factory=dict)


def processed(store: ObjectStore, storage_root: str, name: str) -> Processed:
    """All videos in the ledger; empty when there is none yet.

    Where runs disagree on a split (two runs at the same time), "train" holds: what was trained on
    once can no longer be held out.
    """
    ledger = Processed()
    for info in store.list(ledger_prefix(storage_root, name)):
        with store.open_read(info.uri) as stream:
            next(stream, None)
            for line in stream:
                sha256, word, group = line.decode().rstrip("\n").split(" ", 2)
                split: Split = "validation" if word == "validation" else "train"
                _keep(ledger.videos, bytes.fromhex(sha256), split)
                _keep(ledger.groups, _group(group), split)
    return ledger


def _group(text: str) -> str:
    """A group as a line holds it; older ledgers hold it as it is."""
    return str(json.loads(text)) if text.startswith('"') else text


def _keep(known: dict[Any, Split], key: Any, split: Split) -> None:
    known[key] = "train" if known.get(key) == "train" else split


def runs(store: ObjectStore, storage_root: str, name: str) -> list[dict[str, Any]]:
    """The runs in a ledger: {"run", "videos" (manifest prefix), "content"} each, by name."""
    runs = []
    for info in store.list(ledger_prefix(storage_root, name)):
        with store.open_read(info.uri) as stream:
            runs.append(json.loads(stream.readline()))
    return runs
