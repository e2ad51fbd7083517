"""The object store as the stages see it: whole objects, verified, by ``s3://bucket/key``.

Everything written carries its sha256 and everything read is checked against it. Transfers of many
files run in parallel on one pool of ``workers`` threads; each thread holds at most one part in
memory, so a store object needs about ``workers`` x 32 MiB however large the files are.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from minio.error import S3Error

from components.lib.store.connection import StoreSettings
from components.lib.store.errors import (
    ObjectExists,
    ObjectMissing,
    StoreError,
    corrupt,
)
from components.lib.store.metadata import NONCE_HEADER, to_headers
from components.lib.store.reader import open_reader
from components.lib.store.session import ObjectInfo, Session
from components.lib.store.transfer import SPAN, BytesSource, FileSource, download, upload
from components.lib.store.uri import split_uri, writable_uri

__all__ = ["ObjectExists", "ObjectInfo", "ObjectStore", "StoreError"]

T = TypeVar("T")
Item = TypeVar("Item")


class ObjectStore:
    """An S3 store. Thread-safe; may be used after a fork and may be pickled to a child process."""

    def __init__(self, settings: StoreSettings) -> None:
        self.settings = settings
        self._session: Session | None = None
        self._owner = 0

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> ObjectStore:
        """Store named by AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, when
        set, AWS_REGION, AWS_SESSION_TOKEN, SSL_CERT_FILE. Raises StoreError when one is missing."""
        return cls(StoreSettings.from_env(os.environ if env is None else env))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.settings,)

    @property
    def session(self) -> Session:
        """This process's connection."""
        session = self._session
        # After a fork the parent's sockets and threads are not ours to use.
        if session is None or session.stop.is_set() or self._owner != os.getpid():
            session = self._session = Session(self.settings)
            self._owner = os.getpid()
        return session

    def close(self) -> None:
        """Release threads and connections. The store may be used again afterwards."""
        if self._session is not None and self._owner == os.getpid():
            self._session.close()
        self._session = None

    def stat(self, uri: str) -> ObjectInfo | None:
        """What is stored there, or None. Raises StoreError when the bucket is missing."""
        return self.session.head(uri)

    def get_bytes(self, uri: str, sha256: str | None = None) -> bytes:
        """The whole object, verified against ``sha256`` and against the digest stored with it."""
        info, response = self.session.open_first(uri, SPAN)
        buffer = bytearray()
        first = min(SPAN, info.bytes)
        if first:
            self.session.copy_range(uri, 0, first, info.etag, buffer.extend, response)
        if info.bytes > first:
            rest = info.bytes - first
            self.session.copy_range(uri, first, rest, info.etag, buffer.extend)
        data = bytes(buffer)
        got = hashlib.sha256(data).hexdigest()
        for expected in (sha256, info.sha256):
            if expected and expected.lower() != got:
                raise corrupt(uri, expected.lower(), got)
        return data

    def put_bytes(
        self,
        uri: str,
        data: bytes,
        meta: Mapping[str, Any] | None = None,
        if_absent: bool = False,
    ) -> ObjectInfo:
        """Store ``data``. With ``if_absent`` raises ObjectExists when the object is there already;
        of several writers that try at once exactly one succeeds."""
        writable_uri(uri)
        if if_absent:
            return self._create(uri, data, meta)
        digest, etag = upload(
            self.session, BytesSource(data), uri, lambda sha, size: to_headers(uri, sha, size, meta)
        )
        return ObjectInfo(uri, len(data), etag, time.time(), digest, dict(meta or {}))

    def _create(self, uri: str, data: bytes, meta: Mapping[str, Any] | None) -> ObjectInfo:
        taken = f"{uri} exists already and is only created, never replaced. Choose another name."
        session = self.session
        if session.head(uri) is not None:
            raise ObjectExists(taken)
        digest, nonce = hashlib.sha256(data).hexdigest(), secrets.token_hex(16)
        headers = {
            **to_headers(uri, digest, len(data), meta),
            NONCE_HEADER: nonce,
            "If-None-Match": "*",
        }
        with session.explained(uri):
            try:
                session.put(uri, data, digest, headers)
            except S3Error as error:
                if error.code not in ("PreconditionFailed", "ConditionalRequestConflict"):
                    raise
            # The object carries our nonce exactly when we made it: a refusal may answer the
            # repetition of a request that had succeeded while its answer was lost.
            response = session.request("HEAD", uri)
        if response.headers.get(NONCE_HEADER) != nonce:
            raise ObjectExists(taken)
        etag = str(response.headers.get("etag", "")).strip('"')
        return ObjectInfo(uri, len(data), etag, time.time(), digest, dict(meta or {}))

    def put_file(self, path: Path, uri: str, meta: Mapping[str, Any] | None = None) -> ObjectInfo:
        """Upload a local file; large ones in parallel parts."""
        writable_uri(uri)
        source = FileSource(path)
        try:
            digest, etag = upload(
                self.session, source, uri, lambda sha, size: to_headers(uri, sha, size, meta)
            )
        finally:
            source.close()
        return ObjectInfo(uri, source.size, etag, time.time(), digest, dict(meta or {}))

    def get_file(
        self, uri: str, path: Path, sha256: str | None = None, durable: bool = True
    ) -> Path:
        """Fetch an object to ``path``, which appears only when complete and verified.

        ``durable`` syncs it to disk first, for files that outlive this run (a cache)."""
        download(self.session, uri, path, sha256, durable)
        return path

    def put_files(
        self,
        items: Iterable[tuple[Path, str]],
        done: Callable[[ObjectInfo], None] | None = None,
    ) -> list[ObjectInfo]:
        """Upload (path, uri) pairs in parallel; the first failure stops the rest and is raised.

        ``done`` is called in the calling thread after each file."""
        return self._parallel(items, lambda item: self.put_file(item[0], item[1]), done)

    def get_files(
        self,
        items: Iterable[tuple[str, Path, str | None]],
        done: Callable[[Path], None] | None = None,
        durable: bool = False,
    ) -> list[Path]:
        """Fetch (uri, path, sha256 or None) triples in parallel; as `put_files`. The files are
        taken for working copies and not synced unless ``durable``."""
        return self._parallel(items, lambda item: self.get_file(*item, durable=durable), done)

    def _parallel(
        self,
        items: Iterable[Item],
        work: Callable[[Item], T],
        done: Callable[[T], None] | None,
    ) -> list[T]:
        workers = self.settings.workers
        results: dict[int, T] = {}
        pending: dict[Future[T], int] = {}
        with (
            ThreadPoolExecutor(workers, thread_name_prefix="files") as pool,
            self.session.interruptible(),
        ):
            try:
                for index, item in enumerate(items):
                    # Keep the queue short: the items may be a stream of millions.
                    if len(pending) >= 2 * workers:
                        self._collect(pending, results, done)
                    pending[pool.submit(work, item)] = index
                while pending:
                    self._collect(pending, results, done)
            except BaseException:
                for future in pending:
                    future.cancel()
                raise
        return [results[index] for index in sorted(results)]

    @staticmethod
    def _collect(
        pending: dict[Future[T], int], results: dict[int, T], done: Callable[[T], None] | None
    ) -> None:
        finished, _ = wait(pending, return_when=FIRST_COMPLETED)
        for future in finished:
            index = pending.pop(future)
            results[index] = future.result()
            if done:
                done(results[index])

    def open_read(self, uri: str) -> BinaryIO:
        """A seekable, buffered file over the object (see `reader`). Raises StoreError."""
        info = self.session.head(uri, whole=True)
        if info is None:
            raise ObjectMissing(
                f"{uri} does not exist at {self.settings.endpoint}. Check the URI, or rerun the "
                "stage that writes it."
            )
        return cast(BinaryIO, open_reader(self.session, info))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose URI starts with ``prefix``, in key order, a page at a time.

        Folder placeholders (keys that end with a slash) are left out."""
        bucket, key = split_uri(prefix)
        with self.session.explained(prefix):
            for item in self.session.client.list_objects(bucket, prefix=key, recursive=True):
                name = cast(str, item.object_name)
                if name.endswith("/"):
                    continue
                modified = item.last_modified.timestamp() if item.last_modified else 0.0
                yield ObjectInfo(
                    uri=f"s3://{bucket}/{name}",
                    bytes=item.size or 0,
                    etag=(item.etag or "").strip('"'),
                    modified=modified,
                )

    def delete(self, uri: str) -> None:
        """Remove an object; it need not exist."""
        with self.session.explained(uri):
            try:
                self.session.request("DELETE", uri)
            except S3Error as error:
                if error.code != "NoSuchKey":
                    raise

    def ensure_bucket(self, bucket: str) -> None:
        """Create the bucket unless it exists."""
        uri = f"s3://{bucket}/"
        split_uri(uri)
        session = self.session
        with session.explained(uri):
            if session.bucket_exists(bucket):
                return
            try:
                session.client.make_bucket(bucket)
            except S3Error as error:
                if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                    raise

    def with_settings(self, **changes: Any) -> ObjectStore:
        """The same store with other settings (workers, patience_s, …)."""
        return ObjectStore(replace(self.settings, **changes))
