"""A stand-in for an object store on machines that have none: S3's requests over one dictionary.

It answers what `components.lib.store` sends (objects, ranges, multipart uploads, listing) over real
HTTP, so the client's own work (signing, digests, parallel parts) is all in the measurement. It
checks no signature, keeps everything in memory and is lost with its process: good for measuring
what stands in front of a store, and no measure of a store.
"""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from components.lib.store import ObjectStore
from components.lib.store.connection import StoreSettings


class Memory:
    """Objects by ``bucket/key``: (bytes, headers to give back); parts of unfinished uploads."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.uploads: dict[str, tuple[dict[str, str], dict[int, bytes]]] = {}
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    memory = Memory()

    def log_message(self, *args: object) -> None:
        """Nothing."""

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Send a response; HEAD gets its headers alone."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        """An S3 error."""
        body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
        self.answer(status, body, {"Content-Type": "application/xml"})

    def where(self) -> tuple[str, str, dict[str, str]]:
        """(bucket, bucket/key or nothing, query)."""
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        query = parse_qs(parts.query, keep_blank_values=True)
        return bucket, f"{bucket}/{key}" if key else "", {k: v[0] for k, v in query.items()}

    def kept_headers(self) -> dict[str, str]:
        """The request's headers that belong to the object."""
        return {k: v for k, v in self.headers.items() if k.lower().startswith("x-amz-meta-")}

    def do_PUT(self) -> None:
        """An object, a part, or a bucket."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        _, name, query = self.where()
        etag = hashlib.md5(body, usedforsecurity=False).hexdigest()
        with self.memory.lock:
            if "uploadId" in query:
                self.memory.uploads[query["uploadId"]][1][int(query["partNumber"])] = body
            elif name:
                self.memory.objects[name] = body, {**self.kept_headers(), "ETag": f'"{etag}"'}
        self.answer(200, headers={"ETag": f'"{etag}"'})

    def do_POST(self) -> None:
        """Begin or complete a multipart upload."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        bucket, name, query = self.where()
        key = escape(name.partition("/")[2])
        with self.memory.lock:
            if "uploads" in query:
                identity = uuid.uuid4().hex
                self.memory.uploads[identity] = self.kept_headers(), {}
                body = (
                    f"<InitiateMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{key}</Key>"
                    f"<UploadId>{identity}</UploadId></InitiateMultipartUploadResult>"
                )
            else:
                headers, parts = self.memory.uploads.pop(query["uploadId"])
                data = b"".join(parts[number] for number in sorted(parts))
                etag = f'"{uuid.uuid4().hex}-{len(parts)}"'
                self.memory.objects[name] = data, {**headers, "ETag": etag}
                body = (
                    f"<CompleteMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{key}</Key>"
                    f"<ETag>{escape(etag)}</ETag></CompleteMultipartUploadResult>"
                )
        self.answer(200, body.encode(), {"Content-Type": "application/xml"})

    def do_HEAD(self) -> None:
        """An object's headers."""
        self.do_GET()

    def do_GET(self) -> None:
        """An object, a range of it, or a listing."""
        bucket, name, query = self.where()
        if not name:
            self.answer(200, self.listing(bucket, query.get("prefix", "")).encode())
            return
        found = self.memory.objects.get(name)
        if found is None:
            self.refuse(404, "NoSuchKey")
            return
        data, kept = found
        headers = {**kept, "Last-Modified": formatdate(usegmt=True)}
        wanted = self.headers.get("Range")
        status = 200
        if wanted and self.command == "GET":
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(data) - 1), len(data) - 1)
            if start >= len(data):
                self.refuse(416, "InvalidRange")
                return
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            status, data = 206, data[start : end + 1]
        self.answer(status, data, {**headers, "Content-Length": str(len(data))})

    def do_DELETE(self) -> None:
        """Remove an object, or forget an upload."""
        _, name, query = self.where()
        with self.memory.lock:
            self.memory.uploads.pop(query.get("uploadId", ""), None)
            if "uploadId" not in query:
                self.memory.objects.pop(name, None)
        self.answer(204)

    def listing(self, bucket: str, prefix: str) -> str:
        """ListObjectsV2, on one page."""
        start = f"{bucket}/{prefix}"
        now = "2026-01-01T00:00:00.000Z"
        entries = "".join(
            f"<Contents><Key>{escape(name[len(bucket) + 1 :])}</Key><Size>{len(data)}</Size>"
            f"<LastModified>{now}</LastModified><ETag>{escape(kept['ETag'])}</ETag></Contents>"
            for name, (data, kept) in sorted(self.memory.objects.items())
            if name.startswith(start)
        )
        return (
            f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix>"
            f"<IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
        )


@contextlib.contextmanager
def memory_store() -> Iterator[ObjectStore]:
    """A client of a stand-in that runs in a process of its own."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.gpu.s3_memory"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        client = ObjectStore(StoreSettings(f"http://127.0.0.1:{port}", "key", "secret"))
        yield client
        client.close()
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(http.server_address[1], flush=True)
    http.serve_forever()
