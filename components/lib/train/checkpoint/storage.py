"""Where a run's files go: an object-store prefix, or a local folder when none is given.

A folder of files becomes visible as a whole: files first, its `manifest.json` last. Readers look
for manifests only, so what an interrupted run left behind is never read.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from components.lib.contract import Frozen, UserError
from components.lib.manifest import MANIFEST_NAME, FileEntry
from components.lib.store import ObjectCorrupt, ObjectMissing, ObjectStore
from components.lib.video.records import file_sha256

#: Files of a local folder that are hashed at the same time.
READERS = 4


class DamagedFile(UserError):
    """A stored file is missing, or has another digest than its manifest says."""


class FolderManifest(Frozen):
    """What one complete folder (a checkpoint) holds."""

    files: tuple[FileEntry, ...]
    state: dict[str, Any]


class Storage(Protocol):
    """Files under names relative to a root."""

    def put(self, source: Path, name: str, *, move: bool = False) -> FileEntry:
        """Store a local file. ``move``: the source may go, which spares a folder the copy."""

    def put_text(self, name: str, text: str) -> FileEntry:
        """Store a small text."""

    def get_text(self, name: str) -> str | None:
        """A small text, or None when there is none."""

    def fetch(self, entries: Sequence[FileEntry], prefix: str, folder: Path) -> None:
        """Have ``prefix + entry.path`` at ``folder / entry.path``, to be read only, each digest
        verified. Raises DamagedFile; what another attempt might mend is another error."""

    def names(self, prefix: str) -> list[str]:
        """All names that start with ``prefix``, sorted."""

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""


class ObjectStorage:
    """A prefix in object storage."""

    def __init__(self, store: ObjectStore, uri: str) -> None:
        self.store, self.uri = store, uri.rstrip("/") + "/"

    def put(self, source: Path, name: str, *, move: bool = False) -> FileEntry:
        """Store a local file."""
        info = self.store.put_file(source, self.uri + name)
        assert info.sha256 is not None
        return FileEntry(path=name, bytes=info.bytes, sha256=info.sha256)

    def put_text(self, name: str, text: str) -> FileEntry:
        """Store a small text."""
        info = self.store.put_bytes(self.uri + name, text.encode())
        assert info.sha256 is not None
        return FileEntry(path=name, bytes=info.bytes, sha256=info.sha256)

    def get_text(self, name: str) -> str | None:
        """A small text, or None when there is none."""
        if self.store.stat(self.uri + name) is None:
            return None
        return self.store.get_bytes(self.uri + name).decode()

    def fetch(self, entries: Sequence[FileEntry], prefix: str, folder: Path) -> None:
        """Copy and verify."""
        wanted = [
            (self.uri + prefix + entry.path, folder / entry.path, entry.sha256) for entry in entries
        ]
        try:
            self.store.get_files(wanted)
        except (ObjectMissing, ObjectCorrupt) as error:
            raise DamagedFile(str(error)) from error

    def names(self, prefix: str) -> list[str]:
        """All names that start with ``prefix``, sorted."""
        listed = self.store.list(self.uri + prefix)
        return sorted(info.uri[len(self.uri) :] for info in listed)

    def delete(self, name: str) -> None:
        """Remove a file."""
        self.store.delete(self.uri + name)


class FolderStorage:
    """A folder on a disk that all ranks share."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, source: Path, name: str, *, move: bool = False) -> FileEntry:
        """Store a local file."""
        target = self._target(name)
        temporary = target.with_name(target.name + ".partial")
        if move:
            shutil.move(source, temporary)
            # as any new file here would be; safetensors' are their owner's alone
            temporary.chmod(target.parent.stat().st_mode & 0o666)
        else:
            shutil.copyfile(source, temporary)
        temporary.replace(target)
        return FileEntry(path=name, bytes=target.stat().st_size, sha256=file_sha256(target))

    def put_text(self, name: str, text: str) -> FileEntry:
        """Store a small text."""
        target = self._target(name)
        temporary = target.with_name(target.name + ".partial")
        temporary.write_text(text)
        temporary.replace(target)
        return FileEntry(path=name, bytes=target.stat().st_size, sha256=file_sha256(target))

    def get_text(self, name: str) -> str | None:
        """A small text, or None when there is none."""
        path = self.root / name
        return path.read_text() if path.is_file() else None

    def fetch(self, entries: Sequence[FileEntry], prefix: str, folder: Path) -> None:
        """Verify, and link where that is possible: no file here is changed once it has its name."""

        def fetch_one(entry: FileEntry) -> None:
            source = self.root / prefix / entry.path
            if not source.is_file() or file_sha256(source) != entry.sha256:
                raise DamagedFile(f"{source} is missing or damaged: its digest does not match.")
            target = folder / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            try:
                os.link(source, target)
            except OSError:  # another file system, or one without links
                shutil.copyfile(source, target)

        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(fetch_one, entries))

    def names(self, prefix: str) -> list[str]:
        """All names that start with ``prefix``, sorted."""
        names = [
            path.relative_to(self.root).as_posix()
            for path in self.root.rglob("*")
            if path.is_file() and path.suffix != ".partial"
        ]
        return sorted(name for name in names if name.startswith(prefix))

    def delete(self, name: str) -> None:
        """Remove a file."""
        (self.root / name).unlink(missing_ok=True)

    def _target(self, name: str) -> Path:
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def complete_folders(storage: Storage, prefix: str) -> list[str]:
    """Folders below ``prefix`` that have a manifest, sorted by name; each ends with ``/``."""
    return sorted(
        name[: -len(MANIFEST_NAME)]
        for name in storage.names(prefix)
        if name.endswith("/" + MANIFEST_NAME)
    )


def read_folder_manifest(storage: Storage, folder: str) -> FolderManifest:
    """The manifest of one complete folder."""
    text = storage.get_text(folder + MANIFEST_NAME)
    if text is None:
        raise UserError(f"{folder}{MANIFEST_NAME} does not exist.")
    return FolderManifest.model_validate(json.loads(text))


def delete_folder(storage: Storage, folder: str) -> None:
    """Remove a folder, its manifest first, so that it is never half visible."""
    storage.delete(folder + MANIFEST_NAME)
    for name in storage.names(folder):
        storage.delete(name)
