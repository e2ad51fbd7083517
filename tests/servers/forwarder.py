"""Lets pods of a real cluster reach a server that listens on this machine's loopback alone.

Bytes are passed on as they are, one thread for each direction of a connection: enough for a test's
store, and no privilege or image is needed for it.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def forwarded(address: str, port: int) -> Iterator[int]:
    """The port of ``address`` whose connections go to a local port meanwhile."""
    with socket.create_server((address, 0)) as server:
        threading.Thread(target=_accept, args=(server, port), daemon=True).start()
        try:
            yield int(server.getsockname()[1])
        finally:
            server.shutdown(socket.SHUT_RDWR)  # closing alone leaves the thread one more accept


def _accept(server: socket.socket, port: int) -> None:
    while True:
        try:
            outside, _ = server.accept()
        except OSError:  # closed
            return
        inside = socket.create_connection(("127.0.0.1", port))
        for source, target in ((outside, inside), (inside, outside)):
            threading.Thread(target=_pump, args=(source, target), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
    except OSError:
        pass
    for end in (source, target):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            end.close()
