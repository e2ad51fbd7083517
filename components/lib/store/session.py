"""One process's connection to the store: single requests, each with its errors explained.

Reads stream in small pieces and continue after a broken connection from the byte where it broke;
every continuation carries ``If-Match``, so bytes of two versions of an object never mix.
Sessions are not shared across fork: `ObjectStore` opens one per process.
"""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

from minio.datatypes import Part
from minio.error import InvalidResponseError, S3Error
from urllib3.exceptions import HTTPError, ProtocolError

from components.lib.store.connection import StoreSettings, connect, signed_body
from components.lib.store.errors import (
    MISSING_KEY,
    ObjectMissing,
    RequestError,
    StoreError,
    explain,
)
from components.lib.store.metadata import from_headers, require_whole
from components.lib.store.uri import object_uri, split_uri
from components.lib.store.urllib3_private import read_into

PIECE = 1 << 20
# The body was damaged on its way to the store: send it again.
DAMAGED = frozenset({"BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"})
Sink = Callable[[memoryview], object]


@dataclass(frozen=True)
class ObjectInfo:
    """One object. ``sha256`` and ``meta`` are what this project stored with it, None/{} otherwise.

    ``modified`` is in seconds since the epoch. Listings carry neither digest nor meta.
    """

    uri: str
    bytes: int
    etag: str = ""
    modified: float = 0.0
    sha256: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)


class Session:
    """Requests on one connection pool. Thread-safe."""

    def __init__(self, settings: StoreSettings) -> None:
        self.settings = settings
        self.stop = threading.Event()
        self.client, self.pool = connect(settings, self.stop)
        self.leaf = ThreadPoolExecutor(settings.workers, thread_name_prefix="store")
        self._known_buckets: set[str] = set()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """When Ctrl-C or an exit leaves the block, requests under way in the threads of this
        session end too, instead of being repeated for as long as patience lasts: the interpreter
        waits for those threads. A stopped session is not used again."""
        try:
            yield
        except Exception:
            raise
        except BaseException:
            self.stop.set()
            # Also wakes a thread whose start was interrupted, which the pool does not know of and
            # the interpreter would wait for without end.
            self.leaf.shutdown(wait=False, cancel_futures=True)
            raise

    @contextmanager
    def explained(self, uri: str) -> Iterator[None]:
        """Turn request errors inside into `StoreError`s that name ``uri``."""
        try:
            yield
        except RequestError as error:
            raise self.explain(error, uri) from error
        except ValueError as error:
            # What the minio client raises for XML that is not an S3 answer.
            if "XML element" not in str(error):
                raise
            raise self.explain(InvalidResponseError(200, "xml", str(error)), uri) from error

    def explain(self, error: Exception, uri: str) -> StoreError:
        """The sentence for a request error."""
        settings = self.settings
        return explain(error, uri, settings.endpoint, settings.access_key)

    def request(self, method: str, uri: str, **options: Any) -> Any:
        """One request on an object; raises the minio client's errors."""
        if self.stop.is_set():
            raise HTTPError("the transfer was interrupted")
        bucket, key = object_uri(uri)
        return self.client.request(method, bucket, key, **options)

    def head(self, uri: str, whole: bool = False) -> ObjectInfo | None:
        """Size, time, digest and meta, or None when the object does not exist.

        With ``whole`` an object cut short is an error; else it merely has no digest.
        """
        with self.explained(uri):
            try:
                response = self.request("HEAD", uri)
            except S3Error as error:
                if error.code in MISSING_KEY or error.code == "NoSuchBucket":
                    self.require_bucket(uri)
                    return None
                if error.code == "AccessDenied":
                    # An answer to HEAD has no body, hence no reason: ask again with GET.
                    self.request("GET", uri, headers={"Range": "bytes=0-0"})
                raise
        size = int(response.headers.get("Content-Length", "0"))
        if whole:
            require_whole(uri, response.headers, size)
        return info_of(uri, response.headers, size)

    def require_bucket(self, uri: str) -> None:
        """Raise StoreError when the bucket does not exist (looked up once per bucket)."""
        bucket, _ = split_uri(uri)
        if bucket not in self._known_buckets:
            with self.explained(uri):
                if not self.bucket_exists(bucket):
                    raise StoreError(
                        f"The bucket '{bucket}' does not exist at {self.settings.endpoint} (needed "
                        f"for {uri}). Create it, or correct the URI."
                    )
            self._known_buckets.add(bucket)

    def bucket_exists(self, bucket: str) -> bool:
        """Whether the bucket exists. Raises minio's errors."""
        # Not by HEAD: an answer to HEAD has no body, so a wrong secret would look like a missing
        # permission.
        try:
            self.client.request("GET", bucket, query_params={"list-type": "2", "max-keys": "1"})
        except S3Error as error:
            if error.code == "NoSuchBucket":
                return False
            if error.code != "AccessDenied":
                raise
        return True

    def put(
        self, uri: str, body: Any, sha256: str, headers: dict[str, str], query: Any = None
    ) -> str:
        """Send one body (an object, or with ``query`` a part); returns its ETag. Raises minio's
        errors.

        SeaweedFS does not check the sha256 that signs the request, and keeps an empty object when
        the sender dies before the body. It does check the checksum headers: for an object the
        sha256 that we have anyway; for a part Content-MD5, because S3 takes a part's sha256 only
        in uploads that were begun and are completed with checksums.
        """
        if query is None:
            check = {"x-amz-checksum-sha256": _base64(bytes.fromhex(sha256))}
        else:
            check = {"Content-MD5": _base64(hashlib.md5(body, usedforsecurity=False).digest())}
        headers = {**headers, **signed_body(sha256), **check}
        for last in (False, False, True):
            try:
                response = self.request(
                    "PUT", uri, body=body, headers=dict(headers), query_params=query
                )
                break
            except S3Error as error:
                if last or error.code not in DAMAGED:
                    raise
        return str(response.headers.get("etag", "")).strip('"')

    def start_upload(self, uri: str, headers: dict[str, str]) -> str:
        """Begin a multipart upload; returns its id."""
        return self.client.start_upload(*object_uri(uri), headers)

    def complete_upload(self, uri: str, upload: str, etags: list[str]) -> None:
        """Join the parts into the object. The caller must look whether it is there afterwards."""
        parts = [Part(number, etag) for number, etag in enumerate(etags, 1)]
        # The minio client raises ValueError for an error that comes with status 200.
        with suppress(ValueError):
            self.client.complete_upload(*object_uri(uri), upload, parts)

    def abort_upload(self, uri: str, upload: str) -> None:
        """Forget a multipart upload. A failure to do so only leaves unreachable parts behind."""
        try:
            self.client.abort_upload(*object_uri(uri), upload)
        except RequestError:
            return

    def open_range(self, uri: str, start: int, length: int, etag: str = "") -> Any:
        """A streaming response for bytes [start, start+length). Raises minio's errors."""
        headers = {"Range": f"bytes={start}-{start + length - 1}"}
        if etag:
            headers["If-Match"] = f'"{etag}"'
        started = time.monotonic()
        while True:
            try:
                return self.request("GET", uri, headers=dict(headers), preload_content=False)
            except HTTPError:
                # The pool retries until the answer begins; this one broke off in an error's text.
                if self._tired(started):
                    raise

    def _tired(self, since: float) -> bool:
        return time.monotonic() - since > self.settings.patience_s or self.stop.wait(0.2)

    def copy_range(
        self, uri: str, start: int, length: int, etag: str, sink: Sink, response: Any = None
    ) -> None:
        """Feed bytes [start, start+length) to ``sink`` in order, going on after broken reads.

        ``sink`` gets a view into a buffer that is used again for the next piece.
        ``response`` is an already open response for that range.
        """
        done = 0
        progress = time.monotonic()
        buffer = memoryview(bytearray(min(PIECE, length)))
        while done < length:
            try:
                if response is None:
                    response = self.open_range(uri, start + done, length - done, etag)
                while done < length:
                    if self.stop.is_set():
                        raise HTTPError("the transfer was interrupted")
                    count = _receive(response, buffer[: length - done])
                    sink(buffer[:count])
                    done += count
                    progress = time.monotonic()
                response.release_conn()
            except HTTPError as error:
                if response is not None:
                    response.close()
                response = None
                if self._tired(progress):
                    raise self.explain(error, uri) from error
            except RequestError as error:
                raise self.explain(error, uri) from error
            except BaseException:
                if response is not None:
                    response.close()
                raise

    def read_range(self, uri: str, start: int, length: int, etag: str = "") -> bytes:
        """Bytes [start, start+length) of an object."""
        data = bytearray()
        self.copy_range(uri, start, length, etag, data.extend)
        return bytes(data)

    def open_first(self, uri: str, length: int) -> tuple[ObjectInfo, Any]:
        """Info and an open response for the first ``length`` bytes (None for an empty object).

        One request tells size, digest and meta and already carries the bytes of a small object.
        """
        with self.explained(uri):
            try:
                response = self.open_range(uri, 0, length)
            except S3Error as error:
                if error.code in MISSING_KEY:
                    self.require_bucket(uri)
                if error.code != "InvalidRange":
                    raise
                response = None
        if response is None:
            info = self.head(uri, whole=True)
            if info is None or info.bytes:
                raise ObjectMissing(f"{uri} was replaced while it was read. Rerun.")
            return info, None
        span = response.headers.get("Content-Range", "")
        total = span.rpartition("/")[2] or response.headers.get("Content-Length", "0")
        try:
            require_whole(uri, response.headers, int(total))
        except StoreError:
            response.close()
            raise
        return info_of(uri, response.headers, int(total)), response

    def close(self) -> None:
        """Stop retries and release threads and connections."""
        self.stop.set()
        self.leaf.shutdown(wait=True, cancel_futures=True)
        self.pool.clear()


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _receive(response: Any, buffer: memoryview) -> int:
    """Fill the buffer from the body of a response; returns how much came before its end."""
    done = 0
    try:
        while done < len(buffer):
            count = read_into(response, buffer[done:])
            if count == 0:
                break
            done += count
    except (OSError, HTTPException, ValueError) as error:
        if done == 0:
            raise ProtocolError(f"the connection broke: {error}") from error
    if done == 0:
        raise ProtocolError("the connection ended early")
    return done


def info_of(uri: str, headers: Any, size: int) -> ObjectInfo:
    """ObjectInfo from response headers."""
    digest, meta = from_headers(headers, size)
    return ObjectInfo(
        uri=uri,
        bytes=size,
        etag=str(headers.get("ETag", "")).strip('"'),
        modified=_http_time(headers.get("Last-Modified")),
        sha256=digest,
        meta=meta,
    )


def _http_time(value: str | None) -> float:
    from email.utils import parsedate_to_datetime

    return parsedate_to_datetime(value).timestamp() if value else 0.0
