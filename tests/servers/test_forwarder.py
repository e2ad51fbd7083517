"""The forwarder passes connections on while it is open, and none afterwards."""

from __future__ import annotations

import socket

import pytest

from tests.servers.forwarder import forwarded
from tests.servers.loopback import QuietHandler, serving


class Words(QuietHandler):
    """Answers with what it was sent, twice."""

    def do_POST(self) -> None:
        self.send(200, self.body() * 2, "text/plain")


def exchange(address: str, port: int, body: bytes) -> bytes:
    """A whole answer to a request, until the server hangs up."""
    with socket.create_connection((address, port), timeout=10) as connection:
        head = f"POST / HTTP/1.1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_connection_goes_both_ways_and_ends() -> None:
    with serving(Words) as url, forwarded("127.0.0.2", int(url.rsplit(":", 1)[1])) as port:
        body = bytes(range(256)) * 2000
        for _ in range(2):
            assert exchange("127.0.0.2", port, body).partition(b"\r\n\r\n")[2] == body * 2
    with pytest.raises(ConnectionRefusedError):
        exchange("127.0.0.2", port, b"x")
