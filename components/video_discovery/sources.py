"""Where videos come from: a folder, a file, an S3 prefix, a Hugging Face data set.

Every source lists its files as a stream in one fixed order, so that a million objects are never
held in memory and two listings can be merged line by line. A file's ``version`` changes when its
content does; what discovery learned about a version is never learned again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from components.lib.contract import UserError
from components.lib.store import ObjectInfo, ObjectStore
from components.lib.video.container import VIDEO_SUFFIXES
from components.video_discovery.entries import MAX_SIDECAR_BYTES, Entry, VideoSource, order_key
from components.video_discovery.hub import HubSource

SIDECAR_SUFFIXES = (".json", ".txt")


def open_source(source: str, store: ObjectStore, storage_root: str) -> VideoSource:
    """The source that a config names. Raises UserError when it cannot be one."""
    if source.startswith("s3://"):
        return BucketSource(source, store)
    if source.startswith("hf://"):
        return HubSource(source, store, storage_root)
    if "://" in source and not source.startswith("file://"):
        raise UserError(
            f"The source '{source}' is of no known kind. Give a folder, a file, s3://bucket/prefix "
            "or hf://datasets/owner/name."
        )
    path = Path(source.removeprefix("file://")).expanduser()
    if not path.exists():
        raise UserError(f"There is no file or folder at {path}. Give an existing source.")
    return FolderSource(path.absolute())


class FolderSource:
    """A folder with all below it, or one file. Keys are absolute paths."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = str(root)
        self.single = root.is_file()

    def entries(self) -> Iterator[Entry]:
        if self.single:
            beside = [self.root.with_suffix(suffix) for suffix in SIDECAR_SUFFIXES]
            paths = {path for path in (self.root, *beside) if path.is_file()}
            for path in sorted(paths, key=lambda path: order_key(str(path))):
                yield _file_entry(str(path), path.stat())
            return
        yield from self._walk(str(self.root))

    def _walk(self, folder: str) -> Iterator[Entry]:
        try:
            with os.scandir(folder) as found:
                items = [(item, item.is_dir(follow_symlinks=False)) for item in found]
        except PermissionError as error:
            raise UserError(f"The folder {folder} cannot be read: {error.strerror}.") from error
        # A folder sorts as its name with a slash, which is where the keys below it belong.
        items.sort(key=lambda pair: os.fsencode(pair[0].name) + (b"/" if pair[1] else b""))
        for item, is_folder in items:
            if item.name.startswith("."):
                continue
            if is_folder:
                yield from self._walk(item.path)
            elif item.is_file():
                yield _file_entry(item.path, item.stat())

    def uri(self, entry: Entry, sha256: str) -> str:
        return Path(entry.key).as_uri()

    @contextmanager
    def local(self, entry: Entry, folder: Path) -> Iterator[Path]:
        yield Path(entry.key)

    def read(self, key: str) -> bytes | None:
        path = Path(key)
        if not path.is_file():
            return None
        if path.stat().st_size > MAX_SIDECAR_BYTES:
            raise UserError(f"{path} describes a video but is larger than 1 MiB.")
        return path.read_bytes()

    def publish(self, entry: Entry, path: Path, sha256: str) -> None:
        """Nothing to do: later stages read the file where it is."""


def _file_entry(path: str, stat: os.stat_result) -> Entry:
    return Entry(path, stat.st_size, f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ino}")


def _object_entry(info: ObjectInfo) -> Entry:
    return Entry(info.uri, info.bytes, f"{info.bytes}-{info.etag}")


class BucketSource:
    """Objects under an S3 prefix, or one object. Keys are URIs."""

    def __init__(self, prefix: str, store: ObjectStore) -> None:
        self.prefix, self.store = prefix, store
        self.name = prefix
        self.single = not prefix.endswith("/") and store.stat(prefix) is not None

    def entries(self) -> Iterator[Entry]:
        if self.single:
            folder, _, base = self.prefix.rpartition("/")
            stem = f"{folder}/{base.rpartition('.')[0] or base}"
            uris = {self.prefix, *(stem + suffix for suffix in SIDECAR_SUFFIXES)}
            infos = [info for uri in sorted(uris, key=order_key) if (info := self.store.stat(uri))]
            yield from map(_object_entry, infos)
            return
        # A prefix without a slash is a folder, not the start of other names.
        for info in self.store.list(self.prefix.rstrip("/") + "/"):
            if not info.uri.rsplit("/", 1)[-1].startswith("."):
                yield _object_entry(info)

    def uri(self, entry: Entry, sha256: str) -> str:
        return entry.key

    @contextmanager
    def local(self, entry: Entry, folder: Path) -> Iterator[Path]:
        suffix = PurePosixPath(entry.key).suffix.lower()
        stem = hashlib.sha256(order_key(entry.key)).hexdigest()[:32]
        path = folder / f"{stem}{suffix if suffix in VIDEO_SUFFIXES else ''}"
        try:
            yield self.store.get_file(entry.key, path)
        finally:
            path.unlink(missing_ok=True)

    def read(self, key: str) -> bytes | None:
        info = self.store.stat(key)
        if info is None:
            return None
        if info.bytes > MAX_SIDECAR_BYTES:
            raise UserError(f"{key} describes a video but is larger than 1 MiB.")
        return self.store.get_bytes(key)

    def publish(self, entry: Entry, path: Path, sha256: str) -> None:
        """Nothing to do: later stages read the object where it is."""
