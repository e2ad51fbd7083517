"""The faulty proxy in front of a server that answers what it was asked."""

from __future__ import annotations

import http.client
from collections.abc import Iterator

import pytest

from tests.servers.faulty_proxy import Fault, FaultyProxy, faulty_proxy
from tests.servers.loopback import QuietHandler, serving

BODY = b"what a client sends"


class Echo(QuietHandler):
    """Answers with the body it was sent."""

    seen: list[bytes]

    def do_PUT(self) -> None:
        self.seen.append(self.body())
        self.send(200, self.seen[-1], headers={"ETag": '"1"'})

    def do_HEAD(self) -> None:
        self.send(200, BODY)


@pytest.fixture
def seen() -> list[bytes]:
    """What the server behind the proxy was sent."""
    return []


@pytest.fixture
def proxy(seen: list[bytes]) -> Iterator[FaultyProxy]:
    """A proxy in front of `Echo`."""
    with (
        serving(type("Handler", (Echo,), {"seen": seen})) as url,
        faulty_proxy(url) as server,
    ):
        yield server


def ask(proxy: FaultyProxy, method: str = "PUT") -> tuple[int, http.client.HTTPMessage, bytes]:
    """Status, headers and body of an answer."""
    connection = http.client.HTTPConnection(proxy.endpoint.removeprefix("http://"), timeout=10)
    connection.request(method, "/x", BODY if method == "PUT" else None)
    response = connection.getresponse()
    data = response.read()
    connection.close()
    return response.status, response.headers, data


def test_requests_are_passed_on_as_they_are(proxy: FaultyProxy, seen: list[bytes]) -> None:
    status, headers, data = ask(proxy)
    assert (status, headers["ETag"], data, seen) == (200, '"1"', BODY, [BODY])
    status, headers, data = ask(proxy, "HEAD")
    assert (status, headers["Content-Length"], data) == (200, str(len(BODY)), b"")
    assert proxy.requests == ["PUT /x", "HEAD /x"]


@pytest.mark.parametrize(
    ("fault", "answer", "reaches"),
    [
        ("status", 503, False),
        ("throttle", 429, False),
        ("reset", ConnectionError, False),
        ("deaf", ConnectionError, True),
        ("short", (http.client.IncompleteRead, ConnectionError), True),
    ],
)
def test_what_is_lost_on_the_way(
    proxy: FaultyProxy,
    seen: list[bytes],
    fault: Fault,
    answer: int | type[Exception] | tuple[type[Exception], ...],
    reaches: bool,
) -> None:
    """Whether the server has acted is what the faults differ in."""
    proxy.fault = lambda number, method: fault if (number, method) == (1, "PUT") else None
    if isinstance(answer, int):
        assert ask(proxy)[0] == answer
    else:
        with pytest.raises(answer):
            ask(proxy)
    assert seen == [BODY] * reaches
    assert ask(proxy)[::2] == (200, BODY), "the second request is spared"


def test_bytes_are_damaged_on_either_way(proxy: FaultyProxy, seen: list[bytes]) -> None:
    damaged = BODY[:-1] + bytes([BODY[-1] ^ 255])
    proxy.fault = lambda number, method: "flip"
    assert ask(proxy)[2] == damaged and seen == [BODY]
    proxy.fault = lambda number, method: "damage"
    assert ask(proxy)[2] == damaged and seen == [BODY, damaged]
