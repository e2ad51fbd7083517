"""A proxy between a client and the real object store that fails on request.

The store behind it is a real one, so all answers are S3's own; only the ways in which a network
and a busy service spoil them are made here.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from tests.servers.loopback import QuietHandler, serving

# What happens to a request; None passes it on.
Fault = Literal["status", "throttle", "reset", "deaf", "short", "flip", "damage"] | None
HOP_BY_HOP = ("connection", "transfer-encoding", "content-length")


@contextmanager
def faulty_proxy(target: str, tls: ssl.SSLContext | None = None) -> Iterator[FaultyProxy]:
    """A proxy to this URL that runs; ``endpoint`` says where."""
    proxy = FaultyProxy(target)
    with serving(type("Handler", (ProxyHandler,), {"proxy": proxy}), tls) as proxy.endpoint:
        yield proxy


class FaultyProxy:
    """Passes requests to the real store unless ``fault(n, method)`` names a failure of number n.

    Numbers begin with 1. "status" answers 503, "throttle" 429, "reset" breaks the connection
    before the store sees the request, "deaf" lets the store act but breaks the connection instead
    of passing the answer on, "short" breaks it in the middle of the body, "flip" inverts one byte
    of the answer's body and "damage" one of the request's.
    """

    def __init__(self, target: str) -> None:
        self.target = target.removeprefix("http://")
        self.endpoint = ""
        self.fault: Callable[[int, str], Fault] = lambda _number, _method: None
        self.requests: list[str] = []
        self.lock = threading.Lock()

    def meet(self, method: str, path: str) -> Fault:
        """Note a request; what happens to it."""
        with self.lock:
            self.requests.append(f"{method} {path}")
            return self.fault(len(self.requests), method)


class ProxyHandler(QuietHandler):
    """Relays, or fails as its class's ``proxy`` says."""

    proxy: FaultyProxy

    def relay(self) -> None:
        """Any request."""
        body, fault = self.body(), self.proxy.meet(self.command, self.path)
        if fault == "reset":
            return self.break_off()
        if fault in ("status", "throttle"):
            return self.answer(503 if fault == "status" else 429, {}, b"busy")
        if fault == "damage" and body:
            body = body[:-1] + bytes([body[-1] ^ 255])
        upstream = http.client.HTTPConnection(self.proxy.target, timeout=60)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            upstream.putheader(name, value)
        upstream.endheaders(body or None)
        response = upstream.getresponse()
        payload = response.read()
        headers = {n: v for n, v in response.getheaders() if n.lower() not in HOP_BY_HOP}
        length = response.getheader("Content-Length")
        upstream.close()
        if fault == "deaf":
            return self.break_off()
        if fault == "flip" and payload:
            payload = payload[:-1] + bytes([payload[-1] ^ 255])
        size = int(length) if self.command == "HEAD" and length else len(payload)
        return self.answer(response.status, headers, payload, size, short=fault == "short")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = relay

    def answer(
        self,
        status: int,
        headers: Mapping[str, str],
        payload: bytes,
        size: int | None = None,
        *,
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
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
