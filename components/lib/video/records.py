"""The records that describe a set of videos, one JSON line each, and their split in two.

The split holds out whole drives, because neighbouring videos of one drive show the same street:
a video's group is its drive, or its own content where no drive is known. A group is held out when
a hash of its name falls below the wanted fraction, so that adding videos never moves one across.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal
from urllib.parse import unquote_to_bytes, urlsplit

from pydantic import ValidationError

from components.lib.contract import Frozen, UserError
from components.lib.manifest import file_sha256

if TYPE_CHECKING:
    from components.lib.manifest import Manifest
    from components.lib.store import ObjectStore

RECORDS_NAME = "videos.jsonl"
QUARANTINE_NAME = "quarantine.jsonl"

OLD_MARK = "already_trained_on"  # in `extra`, of videos that the ledger held

Status = Literal["ok", "quarantined", "duplicate"]
Split = Literal["train", "validation"]


class VideoRecord(Frozen):
    """One video. ``width`` and ``height`` are as shown; ``rotation`` is in degrees clockwise.

    ``frames`` counts shown frames, ``fps`` is their mean rate, ``duration`` is in seconds.
    ``uri`` is ``s3://bucket/key``, or ``file:///path`` for a video on local disk. ``reason`` says
    why a video is not used. ``extra`` holds what is unusual about it (see `VideoProbe.extra`).
    """

    uri: str
    sha256: str = ""
    bytes: int = 0
    width: int = 0
    height: int = 0
    fps: float = 0.0
    frames: int = 0
    codec: str = ""
    pixel_format: str = ""
    rotation: int = 0
    duration: float = 0.0
    prompt: str = ""
    drive: str = ""
    vehicle: str = ""
    status: Status = "ok"
    reason: str = ""
    split: Split | None = None
    extra: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """Last part of the uri, readable."""
        path = local_path(self.uri)
        return path.name if path else self.uri.rsplit("/", 1)[-1]

    @property
    def group(self) -> str:
        """What is held out together: the drive, or the video itself."""
        if self.drive:
            return f"drive:{self.vehicle}:{self.drive}"
        return f"video:{self.sha256}"


def is_old(record: VideoRecord) -> bool:
    """Whether an earlier run has used this video; it is here so that nothing is forgotten."""
    return bool(record.extra.get(OLD_MARK))


def local_path(uri: str) -> Path | None:
    """The path of a ``file://`` URI, None for any other."""
    parts = urlsplit(uri)
    return Path(os.fsdecode(unquote_to_bytes(parts.path))) if parts.scheme == "file" else None


def record_line(record: VideoRecord) -> bytes:
    """One line of JSON with its newline. Equal records give equal bytes."""
    values = record.model_dump(mode="json")
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def write_records(path: Path, records: Iterable[VideoRecord]) -> int:
    """Write records to a local file and return how many there were."""
    count = 0
    with path.open("wb") as stream:
        for record in records:
            stream.write(record_line(record))
            count += 1
    return count


def parse_records(stream: IO[bytes], name: str) -> Iterator[VideoRecord]:
    """Records from lines of JSON. Raises UserError naming the first line that is not one."""
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            yield VideoRecord.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"{name}, line {number} is not a video record: {first['msg']}.") from (
                error
            )


def read_records(
    manifest: Manifest, store: ObjectStore, name: str = RECORDS_NAME
) -> Iterator[VideoRecord]:
    """Records of a ``videos`` manifest, in the order of their uri, streaming from the store."""
    entry = manifest.entry(name)
    uri = manifest.file_uri(name)
    digest = hashlib.sha256()
    with store.open_read(uri) as stream:
        yield from parse_records(_hashed(stream, digest), uri)
    if digest.hexdigest() != entry.sha256:
        raise UserError(f"{uri} is not what its manifest says (sha256 differs). Discover again.")


def _hashed(stream: IO[bytes], digest: Any) -> Any:
    for line in stream:
        digest.update(line)
        yield line


def fetch_video(record: VideoRecord, store: ObjectStore, folder: Path) -> Path:
    """A local, verified copy of a video: the file itself where it is local, else a download.

    Raises UserError when the content is no longer what discovery saw.
    """
    path = local_path(record.uri)
    if path is None:
        suffix = Path(record.name).suffix or ".mp4"
        return store.get_file(record.uri, folder / f"{record.sha256}{suffix}", sha256=record.sha256)
    if not path.is_file():
        raise UserError(f"{path} is gone since discovery. Put it back or discover again.")
    if file_sha256(path) != record.sha256:
        raise UserError(f"{path} has changed since discovery. Run video_discovery again.")
    return path


def position(group: str, seed: int) -> float:
    """Where a group lies in [0, 1), the same on every machine and in every set of videos."""
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


class SplitRule:
    """Which groups are held out, decided from a first pass over all of them.

    With two groups or more both splits are non-empty: where the hash leaves one empty, the group
    nearest to the threshold crosses. With one group everything is for training. Groups in
    ``known`` keep the split they have there and take no part in this.
    """

    def __init__(
        self, fraction: float, seed: int, known: Mapping[str, Split] | None = None
    ) -> None:
        self.fraction, self.seed, self.known = fraction, seed, known or {}
        self.lowest: tuple[float, str] | None = None
        self.highest: tuple[float, str] | None = None

    def see(self, record: VideoRecord) -> None:
        """First pass: take note of a record's group."""
        if record.group in self.known:
            return
        here = (position(record.group, self.seed), record.group)
        self.lowest = here if self.lowest is None else min(self.lowest, here)
        self.highest = here if self.highest is None else max(self.highest, here)

    @property
    def single_group(self) -> bool:
        """Whether there is nothing to hold out."""
        return self.lowest == self.highest

    def split(self, record: VideoRecord) -> Split:
        """Second pass: the split of a record."""
        if record.group in self.known:
            return self.known[record.group]
        if self.single_group or self.fraction <= 0:
            return "train"
        assert self.lowest is not None and self.highest is not None, "see() comes first"
        here = (position(record.group, self.seed), record.group)
        if here == self.lowest:
            return "validation"
        if here == self.highest:
            return "train"
        return "validation" if here[0] < self.fraction else "train"


def assign_splits(records: Iterable[VideoRecord], fraction: float, seed: int) -> list[VideoRecord]:
    """The records with their splits; those that are not "ok" have none."""
    listed = list(records)
    rule = SplitRule(fraction, seed)
    for record in listed:
        if record.status == "ok":
            rule.see(record)
    return [
        record.model_copy(update={"split": rule.split(record)}) if record.status == "ok" else record
        for record in listed
    ]
