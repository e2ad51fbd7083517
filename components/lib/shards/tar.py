"""Tar shards in the WebDataset layout: one sample is the run of members that share a key.

Writing is deterministic (fixed owner, mode and time; parts in order of extension), so equal
samples give byte-identical shards. Reading is a stream: members are yielded as they pass, nothing
is extracted to disk, and whatever is not a plain file with a safe name is an error. Headers are
POSIX ustar, with a pax record only for names or sizes that ustar cannot hold.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from components.lib.contract import UserError

BLOCK = 512
RECORD = 10240
MAX_PART_BYTES = 16 << 30
_KEY = re.compile(r"[^./\\\x00-\x1f][^.\\\x00-\x1f]*\Z")
_EXTENSION = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*\Z")


@dataclass(frozen=True)
class PartPlace:
    """Where one part's content lies in its shard, in bytes."""

    name: str
    offset: int
    bytes: int


@dataclass(frozen=True)
class SamplePlace:
    """Where one sample lies in its shard: from its first header to the end of its padding."""

    key: str
    offset: int
    bytes: int
    parts: tuple[PartPlace, ...]


@dataclass(frozen=True)
class ShardInfo:
    """One finished shard."""

    path: Path
    samples: int
    bytes: int
    places: tuple[SamplePlace, ...] = ()


class ShardWriter:
    """Write samples into ``directory/<prefix>000000.tar`` and on, a new shard when one is full.

    A shard is full when another sample would take it over ``max_bytes`` (a single larger sample
    gets a shard of its own) or when it has ``max_samples``. Numbers start at ``first``. A shard
    has its name only once it is complete. Use as a context manager, or call `close`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        prefix: str = "",
        max_bytes: int = 1 << 30,
        max_samples: int = 100_000,
        first: int = 0,
    ) -> None:
        self.directory, self.prefix = directory, prefix
        self.max_bytes, self.max_samples = max_bytes, max_samples
        self.number = first
        self.shards: list[ShardInfo] = []
        self._stream: BinaryIO | None = None
        self._places: list[SamplePlace] = []
        self._last_key: str | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def write(self, key: str, parts: Mapping[str, bytes | Path]) -> None:
        """Add one sample: file extension (without dot) -> content or a local file of it.

        Raises ValueError for a key or extension that readers would not give back unchanged.
        """
        _check_names(key, parts)
        if key == self._last_key:
            raise ValueError(f"the key {key!r} was just written: its samples would merge")
        sizes = {ext: _size(content) for ext, content in parts.items()}
        headers = {ext: _header(f"{key}.{ext}", sizes[ext]) for ext in sizes}
        total = sum(len(headers[ext]) + _padded(sizes[ext]) for ext in sizes)
        if self._places and (
            self._end() + total + 2 * BLOCK > self.max_bytes
            or len(self._places) >= self.max_samples
        ):
            self._finish()
        stream = self._stream or self._begin()
        offset = here = self._end()
        places = []
        for ext in sorted(parts):
            stream.write(headers[ext])
            here += len(headers[ext])
            places.append(PartPlace(ext, here, sizes[ext]))
            _copy(parts[ext], stream, sizes[ext])
            stream.write(bytes(_padded(sizes[ext]) - sizes[ext]))
            here += _padded(sizes[ext])
        self._places.append(SamplePlace(key, offset, here - offset, tuple(places)))
        self._last_key = key

    def close(self) -> list[ShardInfo]:
        """Finish the last shard and give all of them."""
        if self._stream is not None:
            self._finish()
        return self.shards

    def abort(self) -> None:
        """Drop the unfinished shard."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
            self._partial().unlink(missing_ok=True)

    def _end(self) -> int:
        return self._places[-1].offset + self._places[-1].bytes if self._places else 0

    def _path(self) -> Path:
        return self.directory / f"{self.prefix}{self.number:06d}.tar"

    def _partial(self) -> Path:
        return self.directory / f".{self._path().name}.partial"

    def _begin(self) -> BinaryIO:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._stream = self._partial().open("wb", buffering=1 << 20)
        return self._stream

    def _finish(self) -> None:
        assert self._stream is not None, "a shard is open while it has samples"
        end = self._end()
        size = -(-(end + 2 * BLOCK) // RECORD) * RECORD
        self._stream.write(bytes(size - end))
        self._stream.close()
        self._stream = None
        path = self._path()
        self._partial().replace(path)
        self.shards.append(ShardInfo(path, len(self._places), size, tuple(self._places)))
        self._places = []
        self.number += 1


def scan_shard(stream: BinaryIO) -> list[SamplePlace]:
    """Where the samples of a shard lie, from its headers alone (contents are sought over).

    ``stream`` is seekable. Raises UserError when it is not a tar of plain, safely named files.
    """
    places: list[SamplePlace] = []
    with _reading(stream, "r:") as archive:
        for member in archive:
            if member.isdir():  # `tar` writes one for each folder
                continue
            key, ext = _split_name(member, archive.name)
            part = PartPlace(ext, member.offset_data, member.size)
            end = member.offset_data + _padded(member.size)
            if places and places[-1].key == key:
                known = places[-1]
                grown = (*known.parts, part)
                places[-1] = SamplePlace(key, known.offset, end - known.offset, grown)
            else:
                places.append(SamplePlace(key, member.offset, end - member.offset, (part,)))
    return places


class IndexedShard:
    """Random access to the samples of a local shard. Raises UserError as `scan_shard` does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as stream:
            self.samples = scan_shard(stream)

    def size(self, index: int) -> int:
        """Bytes of all parts of sample ``index``."""
        return sum(part.bytes for part in self.samples[index].parts)

    def read(self, index: int) -> tuple[str, dict[str, bytes]]:
        """(key, extension -> bytes) of sample ``index``."""
        sample = self.samples[index]
        parts = {}
        with self.path.open("rb") as stream:
            for part in sample.parts:
                stream.seek(part.offset)
                parts[part.name] = stream.read(part.bytes)
        return sample.key, parts


def iter_samples(
    stream: IO[bytes], *, max_part_bytes: int = MAX_PART_BYTES
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (key, {extension: content}) in the order of the shard, one sample in memory at a time.

    ``stream`` need not be seekable. Raises UserError for links, devices, unsafe names, parts over
    ``max_part_bytes``, and archives that are cut off.
    """
    key: str | None = None
    parts: dict[str, bytes] = {}
    with _reading(stream, "r|") as archive:
        for member in archive:
            if member.isdir():
                continue
            here, ext = _split_name(member, archive.name)
            if member.size > max_part_bytes:
                raise UserError(
                    f"The member '{member.name}' of a shard claims {member.size} bytes, the "
                    f"limit is {max_part_bytes}."
                )
            if key is not None and here != key:
                yield key, parts
                parts = {}
            key = here
            content = archive.extractfile(member)
            assert content is not None, "plain files have content"
            parts[ext] = content.read()
    if key is not None:
        yield key, parts


class _reading:
    """tarfile with its errors turned into sentences."""

    def __init__(self, stream: IO[bytes], mode: str) -> None:
        self.stream, self.mode = stream, mode
        self.name = str(getattr(stream, "name", "the shard"))

    def __enter__(self) -> tarfile.TarFile:
        try:
            self.archive = tarfile.open(fileobj=self.stream, mode=self.mode)  # type: ignore[call-overload]
        except tarfile.TarError as error:
            raise UserError(f"{self.name} is not a tar shard: {error}.") from error
        return self.archive

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.archive.close()
        if isinstance(error, tarfile.TarError | EOFError):
            raise UserError(f"{self.name} is damaged or cut off: {error}.") from error


def _split_name(member: tarfile.TarInfo, archive: object) -> tuple[str, str]:
    folder, _, base = member.name.rpartition("/")
    stem, dot, ext = base.partition(".")
    if (
        not member.isreg()
        or member.name.startswith("/")
        or not stem
        or not dot
        or not ext
        or (".." in folder.split("/") or "\\" in member.name)
    ):
        raise UserError(
            f"The shard {archive or ''} holds '{member.name}', which is not a plain file with a "
            "safe name of the form key.extension."
        )
    return (f"{folder}/{stem}" if folder else stem), ext


def _check_names(key: str, parts: Mapping[str, bytes | Path]) -> None:
    unsafe = any(piece in ("", "..") for piece in key.split("/"))
    if not _KEY.match(key) or unsafe:
        raise ValueError(f"{key!r} cannot be the key of a sample: no dots, no empty folders")
    if not parts:
        raise ValueError(f"the sample {key!r} has no parts")
    for ext in parts:
        if not _EXTENSION.match(ext):
            raise ValueError(f"{ext!r} cannot be the extension of a part")


def _size(content: bytes | Path) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info.tobuf(format=tarfile.PAX_FORMAT)


def _copy(content: bytes | Path, stream: BinaryIO, size: int) -> None:
    """Append exactly ``size`` bytes; file content moves inside the kernel where it can."""
    if not isinstance(content, Path):
        stream.write(content)
        return
    with content.open("rb") as source:
        stream.flush()
        left = size
        while left:
            moved = os.sendfile(stream.fileno(), source.fileno(), None, min(left, 1 << 30))
            if moved == 0:
                raise UserError(f"{content} became shorter while it was being packed.")
            left -= moved
        stream.seek(0, io.SEEK_END)
