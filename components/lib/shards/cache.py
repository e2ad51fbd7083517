"""A bounded local cache of shards (or the guide's files), shared by the processes of a node.

A shard is downloaded once under a lock and then read at random from disk; the least recently used
ones are deleted when the bound is reached. Deleting a file that another process has open is safe
on POSIX systems: it keeps reading, and fetches the shard again the next time. Locks are a fixed
number of files, so that a data set of many small files leaves no lock behind for each.
"""

from __future__ import annotations

import fcntl
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from components.lib.contract import Frozen, UserError
from components.lib.store import ObjectStore

T = TypeVar("T")
_KEPT = (".tar", ".pth", ".json")
_LOCKS = 64


class ShardRef(Frozen):
    """One file of a data set. ``uri`` is ``s3://…`` or a local path; ``sha256`` None: not known.

    ``shape``: of each of its samples, where they are alike and that is known.
    """

    name: str
    uri: str
    samples: int
    split: str = "train"
    sha256: str | None = None
    shape: tuple[int, ...] = ()


class ShardCache:
    """Local copies of shards in ``folder``, at most ``max_bytes`` of them in total."""

    def __init__(self, folder: Path, max_bytes: int, store: ObjectStore | None) -> None:
        self.folder, self.max_bytes, self.store = folder, max_bytes, store
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, shard: ShardRef) -> Path:
        """A local file with the shard's bytes, downloaded and verified if it is not there yet."""
        if not shard.uri.startswith("s3://"):
            return Path(shard.uri)
        local = self.folder / f"{(shard.sha256 or 'unverified')[:16]}-{Path(shard.name).name}"
        if not self._touch(local):
            with self._lock(local):
                if not self._touch(local):
                    self._make_room()
                    if self.store is None:
                        raise UserError(f"{shard.uri} cannot be read: no object store is set up.")
                    self.store.get_file(shard.uri, local, sha256=shard.sha256)
        return local

    def use(self, shard: ShardRef, read: Callable[[Path], T]) -> T:
        """What ``read`` makes of the shard's local file."""
        for _ in range(3):
            try:
                return read(self.path(shard))
            except FileNotFoundError:
                # Another process made room between our look-up and our read.
                if not shard.uri.startswith("s3://"):
                    raise UserError(f"{shard.uri} is not there any more.") from None
        raise UserError(
            f"{shard.uri} vanished from the shard cache three times: raise data.cache_gib."
        )

    def read(self, shard: ShardRef) -> bytes:
        """All bytes of the shard."""
        return self.use(shard, Path.read_bytes)

    def bytes_held(self) -> int:
        """Total size of the cached shards."""
        return sum(size for _, size, _ in self._entries())

    def _touch(self, path: Path) -> bool:
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _make_room(self) -> None:
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        while entries and total > self.max_bytes:
            _, size, path = entries.pop(0)
            path.unlink(missing_ok=True)
            total -= size

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        for path in self.folder.iterdir():
            # what is being downloaded has a dot before its name
            if path.suffix not in _KEPT or path.name.startswith("."):
                continue
            try:
                info = path.stat()
            except FileNotFoundError:
                continue
            yield info.st_mtime, info.st_size, path

    @contextmanager
    def _lock(self, path: Path) -> Iterator[None]:
        number = zlib.crc32(path.name.encode()) % _LOCKS
        with (self.folder / f"{number:02d}.lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield
