"""A proxy between client and store that fails on request."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from components.lib.store import ObjectStore
from components.lib.store.embedded import EmbeddedStore

# What to do with request number n (from 1): None passes it on, the others fail in their way.
Fault = str | None


class FaultyProxy:
    """Passes requests to the real store unless ``fault(n, method)`` names a failure.

    "status" answers 503, "throttle" 429, "reset" breaks the connection before the store sees the
    request, "deaf" lets the store act but breaks the connection instead of passing the answer on,
    "short" breaks it in the middle of the body, "flip" inverts one byte of the answer's body and
    "damage" one of the request's.
    """

    def __init__(self, target: str) -> None:
        self.target = target.removeprefix("http://")
        self.fault: Callable[[int, str], Fault] = lambda number, method: None
        self.requests: list[str] = []
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                """Nothing."""

            def relay(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with proxy.lock:
                    proxy.requests.append(f"{self.command} {self.path}")
                    fault = proxy.fault(len(proxy.requests), self.command)
                if fault == "reset":
                    return self.break_off()
                if fault in ("status", "throttle"):
                    return self.answer(503 if fault == "status" else 429, {}, b"busy")
                if fault == "damage" and body:
                    body = body[:-1] + bytes([body[-1] ^ 255])
                upstream = http.client.HTTPConnection(proxy.target, timeout=60)
                upstream.putrequest(
                    self.command, self.path, skip_host=True, skip_accept_encoding=True
                )
                for name, value in self.headers.items():
                    upstream.putheader(name, value)
                upstream.endheaders(body or None)
                response = upstream.getresponse()
                payload = response.read()
                headers = {
                    name: value
                    for name, value in response.getheaders()
                    if name.lower() not in ("connection", "transfer-encoding", "content-length")
                }
                length = response.getheader("Content-Length")
                upstream.close()
                if fault == "deaf":
                    return self.break_off()
                if fault == "flip" and payload:
                    payload = payload[:-1] + bytes([payload[-1] ^ 255])
                size = int(length) if self.command == "HEAD" and length else len(payload)
                return self.answer(response.status, headers, payload, size, fault == "short")

            def answer(
                self,
                status: int,
                headers: dict[str, str],
                payload: bytes,
                size: int | None = None,
                short: bool = False,
            ) -> None:
                self.send_response_only(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(payload) if size is None else size))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(payload[: len(payload) // 2] if short else payload)
                if short:
                    self.break_off()

            def break_off(self) -> None:
                # Linger 0 makes the close a TCP reset.
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                self.close_connection = True
                self.connection.close()

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = relay

        return Handler


@pytest.fixture
def proxy(embedded_store: EmbeddedStore) -> Iterator[FaultyProxy]:
    server = FaultyProxy(embedded_store.env["AWS_ENDPOINT_URL"])
    yield server
    server.close()


@pytest.fixture
def faulty(proxy: FaultyProxy, store: ObjectStore) -> Iterator[ObjectStore]:
    """A client that reaches the store through the proxy."""
    client = store.with_settings(endpoint=proxy.endpoint, patience_s=20.0)
    yield client
    client.close()


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    """Transfers split at 5 MiB (the smallest part S3 allows); returns that size."""
    from components.lib.store import transfer

    size = 5 << 20
    for name in ("SINGLE", "PART", "SPAN"):
        monkeypatch.setattr(transfer, name, size)
    return size
