"""Moving whole files: parallel multipart uploads, ranged downloads, a sha256 around both.

S3 takes user metadata when an upload *begins*, so the digest must be known before the first part
leaves. Up to `SINGLE` bytes the file is read once into memory, hashed and sent. A larger file is
hashed first and then read again for its parts, the second time mostly from the page cache: twice
the reading, but the object is never visible without its digest.

A download asks for the first `SPAN` bytes at once; that answer tells the size, and the further
ranges come in parallel into a temporary file beside the target. The hash follows in file order
behind them. Only a verified file is renamed to its name, so a killed process leaves whole files
only; a file must also be synced to survive a power failure, which takes longer than fetching it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Protocol, TypeVar

from minio.error import S3Error
from urllib3.exceptions import HTTPError

from components.lib.store.errors import RequestError, StoreError, corrupt
from components.lib.store.session import ObjectInfo, Session, Sink

SINGLE = 32 << 20
PART = 16 << 20
SPAN = 32 << 20
MAX_PARTS = 10_000
_PIECE = 1 << 20
T = TypeVar("T")
MakeHeaders = Callable[[str, int], dict[str, str]]


class UploadSource(Protocol):
    """Bytes to upload."""

    size: int

    def read(self, start: int, length: int) -> memoryview:
        """Bytes [start, start+length)."""


class BytesSource:
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.data, self.size = memoryview(data).cast("B"), len(data)

    def read(self, start: int, length: int) -> memoryview:
        return self.data[start : start + length]


class FileSource:
    """A local file that must not change during the upload."""

    def __init__(self, path: Path) -> None:
        try:
            self.fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise StoreError(f"There is no file {path} to upload. Check the path.") from error
        except OSError as error:
            raise StoreError(
                f"{path} cannot be read ({error.strerror}). Check its permissions."
            ) from error
        if not stat.S_ISREG(os.fstat(self.fd).st_mode):
            os.close(self.fd)
            raise StoreError(f"{path} is not a file. Give the path of a file to upload.")
        self.path = path
        self.state = self._state()
        self.size = self.state[0]

    def _state(self) -> tuple[int, int]:
        status = os.fstat(self.fd)
        return status.st_size, status.st_mtime_ns

    def read(self, start: int, length: int) -> memoryview:
        buffer = memoryview(bytearray(length))
        done = 0
        while done < length:
            count = os.preadv(self.fd, [buffer[done:]], start + done)
            if count == 0:
                raise self.changed()
            done += count
        return buffer

    def check(self) -> None:
        """Raise StoreError when the file was written to since it was opened."""
        if self._state() != self.state:
            raise self.changed()

    def changed(self) -> StoreError:
        return StoreError(
            f"{self.path} was changed during its upload. Upload it when nothing writes it."
        )

    def close(self) -> None:
        os.close(self.fd)


def upload(
    session: Session,
    source: UploadSource,
    uri: str,
    make_headers: MakeHeaders,
) -> tuple[str, str]:
    """Send ``source`` to ``uri``; returns (sha256, etag). ``make_headers(sha256, size)`` gives the
    metadata headers. Raises StoreError."""
    if source.size <= SINGLE:
        with session.interruptible():
            return session.leaf.submit(_send_whole, session, source, uri, make_headers).result()
    digest = hash_source(source)
    headers = make_headers(digest, source.size)
    for _ in range(3):
        try:
            _send_parts(session, source, uri, headers)
        except S3Error as error:
            # A store that restarted may have forgotten the upload, or have joined it already.
            if error.code != "NoSuchUpload":
                raise session.explain(error, uri) from error
        except RequestError as error:
            raise session.explain(error, uri) from error
        info = session.head(uri)
        if info is not None and info.sha256 == digest and info.bytes == source.size:
            return digest, info.etag
    raise StoreError(
        f"{uri} is not what was uploaded, three times in a row. Rerun once nothing else writes it."
    )


def hash_source(source: UploadSource) -> str:
    """sha256 of everything in ``source``, in hex."""
    digest = hashlib.sha256()
    for start in range(0, source.size, _PIECE):
        digest.update(source.read(start, min(_PIECE, source.size - start)))
    return digest.hexdigest()


def _send_whole(
    session: Session, source: UploadSource, uri: str, make_headers: MakeHeaders
) -> tuple[str, str]:
    body = source.read(0, source.size)
    digest = hashlib.sha256(body).hexdigest()
    with session.explained(uri):
        return digest, session.put(uri, body, digest, make_headers(digest, source.size))


def _send_parts(session: Session, source: UploadSource, uri: str, headers: dict[str, str]) -> None:
    size = max(PART, -(-source.size // MAX_PARTS))
    upload_id = session.start_upload(uri, headers)

    def send(number: int) -> str:
        start = (number - 1) * size
        body = source.read(start, min(size, source.size - start))
        query = {"partNumber": str(number), "uploadId": upload_id}
        return session.put(uri, body, hashlib.sha256(body).hexdigest(), {}, query)

    numbers = range(1, -(-source.size // size) + 1)
    try:
        etags = _in_order(session, [session.leaf.submit(send, number) for number in numbers])
        if isinstance(source, FileSource):
            source.check()
        session.complete_upload(uri, upload_id, etags)
    except HTTPError:
        # The store cannot be reached, so neither can it be told.
        raise
    except BaseException:
        session.abort_upload(uri, upload_id)
        raise


def _in_order(session: Session, futures: list[Future[T]]) -> list[T]:
    try:
        with session.interruptible():
            return [future.result() for future in futures]
    except BaseException:
        _settle(futures)
        raise


def _settle(futures: list[Future[T]]) -> None:
    """Cancel what has not begun and wait for the rest, which may still use an open file."""
    for future in futures:
        future.cancel()
    wait(future for future in futures if not future.cancelled())


def download(
    session: Session, uri: str, path: Path, sha256: str | None, durable: bool
) -> ObjectInfo:
    """Write the object to ``path``, verified against ``sha256`` and the stored digest.

    ``path`` either keeps what it held or holds the whole verified object; when ``durable`` also
    after a power failure. Raises StoreError.
    """
    info, response = session.open_first(uri, SPAN)
    try:
        _compare(uri, sha256, info.sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.parent / f".{path.name[:180]}.{secrets.token_hex(6)}.part"
        fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            got = _fetch(session, info, fd, response)
            _compare(uri, sha256 or info.sha256, got)
            if durable:
                os.fsync(fd)
            partial.replace(path)
        finally:
            os.close(fd)
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise _local(error, uri, path, info.bytes) from error
    finally:
        if response is not None:
            response.close()
    return info


def _fetch(session: Session, info: ObjectInfo, fd: int, response: object) -> str:
    uri, etag = info.uri, info.etag
    digest = hashlib.sha256()
    first = min(SPAN, info.bytes)

    def fetch(start: int) -> None:
        length = min(SPAN, info.bytes - start)
        session.copy_range(uri, start, length, etag, _placed(fd, start, None))

    starts = range(first, info.bytes, SPAN)
    rest = [session.leaf.submit(fetch, start) for start in starts]
    try:
        with session.interruptible():
            if first:
                session.copy_range(uri, 0, first, etag, _placed(fd, 0, digest.update), response)
            for start, future in zip(starts, rest, strict=True):
                future.result()
                end = min(start + SPAN, info.bytes)
                for at in range(start, end, _PIECE):
                    digest.update(os.pread(fd, min(_PIECE, end - at), at))
    except BaseException:
        _settle(rest)
        raise
    return digest.hexdigest()


def _placed(fd: int, start: int, hash_piece: Sink | None) -> Sink:
    """A sink that writes its pieces one after another from ``start`` on, and hashes them."""
    at = start

    def place(piece: memoryview) -> None:
        nonlocal at
        if hash_piece is not None:
            hash_piece(piece)
        while piece:
            count = os.pwrite(fd, piece, at)
            at += count
            piece = piece[count:]

    return place


def _compare(uri: str, expected: str | None, got: str | None) -> None:
    if expected and got and expected.lower() != got:
        raise corrupt(uri, expected.lower(), got)


def _local(error: OSError, uri: str, path: Path, size: int) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(
            f"The disk is full: {uri} needs {size} bytes at {path.parent}. Free some space."
        )
    return StoreError(
        f"{path} cannot be written ({error.strerror}), so {uri} was not fetched. Check the folder."
    )
