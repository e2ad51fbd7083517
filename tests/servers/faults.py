"""Troubles that a test orders from a fake server: the next matching requests meet them.

A fault is an HTTP status, or one of the ways in which a connection goes wrong: "drop" closes it
without an answer, "hang" leaves it open and dead, "slow" answers a second late, and "login page"
is what a proxy in between may answer: success, but in HTML.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tests.servers.loopback import QuietHandler

Trouble = int | Literal["drop", "hang", "slow", "login page"]


@dataclass
class Fault:
    """What happens to ``times`` requests of a method whose path matches."""

    method: str
    path: re.Pattern[str]
    trouble: Trouble
    times: int
    message: str
    headers: Mapping[str, str]
    after: bool


@dataclass
class Faults:
    """The faults of a server, each used up by the requests that meet it."""

    ordered: list[Fault] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def order(
        self,
        method: str,
        path: str,
        trouble: Trouble,
        times: int = 1,
        *,
        after: bool = False,
        message: str = "passing trouble",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """``after``: the server does what was asked, and the answer gets lost."""
        self.ordered.append(
            Fault(method, re.compile(path), trouble, times, message, headers or {}, after)
        )

    def take(self, method: str, path: str, *, after: bool = False) -> Fault | None:
        """The fault that this request meets, used up by one."""
        with self.lock:
            for fault in self.ordered:
                if (
                    fault.times > 0
                    and (fault.method, fault.after) == (method, after)
                    and fault.path.search(path)
                ):
                    fault.times -= 1
                    return fault
        return None


class Refusal(Exception):
    """The server's answer is an error. ``message`` is None where there is not even a sentence."""

    def __init__(
        self, status: int, message: str | None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}


def meet(fault: Fault, handler: QuietHandler, closing: threading.Event) -> None:
    """Let a request meet its fault. Raises `Refusal`, or ConnectionAbortedError to hang up.

    Returns when the request is to be carried out after all; ``closing`` ends those that hang.
    """
    match fault.trouble:
        case "slow":
            time.sleep(1)
        case "drop":
            raise ConnectionAbortedError
        case "hang":
            closing.wait(600)
            raise ConnectionAbortedError
        case "login page":
            handler.send(200, b"<html>Please log in</html>", "text/html")
            raise ConnectionAbortedError
        case status:
            raise Refusal(status, fault.message, fault.headers)
