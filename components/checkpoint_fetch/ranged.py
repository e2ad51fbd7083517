"""Downloads large files over HTTP in parallel ranges that survive a kill.

huggingface_hub 2.4 streams a file in one piece under a random temporary name and starts over when
the process dies. Here a file is cut into parts that several threads fetch into a preallocated
`.partial` file; a `.parts` journal beside it lists the parts that are complete, so another
process goes on where a killed one stopped. The caller verifies the digest of the whole at the end,
which also covers whatever a crash of the machine may have left.

The trade-off: ranges need a server that honours them. One that does not is read in one piece.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2  # the HTTP client of huggingface_hub, whose sessions are used here

PART_BYTES = 32 * 1024 * 1024
ATTEMPTS = 8
RETRIED = (408, 425, 429, 500, 502, 503, 504)
EXPIRED = (401, 403, 410)


class NoRanges(Exception):
    """The server answered a range request with the whole file."""


class Refused(Exception):
    """The server answered with a status that a retry does not mend."""

    def __init__(self, status: int, url: str) -> None:
        super().__init__(f"status {status} for {url}")
        self.status = status


class Interrupted(Exception):
    """The connection broke more often than is worth retrying."""


Address = Callable[[bool], tuple[str, Mapping[str, str]]]
Opener = Callable[[str, Mapping[str, str]], Any]


class Download:
    """One file. ``address(renew)`` gives URL and headers, fresh ones after a signed URL expired."""

    def __init__(
        self,
        target: Path,
        size: int,
        address: Address,
        open_url: Opener,
        advance: Callable[[int], None],
        *,
        part_bytes: int = PART_BYTES,
        wait_s: float = 0.5,
    ) -> None:
        self.target, self.size, self.address, self.open_url = target, size, address, open_url
        self.advance, self.part_bytes, self.wait_s = advance, part_bytes, wait_s
        self.partial = target.with_name(target.name + ".partial")
        self.journal = target.with_name(target.name + ".parts")
        self.lock = threading.Lock()
        self.stop = threading.Event()

    def run(self, pool: ThreadPoolExecutor) -> Path:
        """Fetch what is missing and return the complete partial file."""
        done = self._prepare()
        parts = [number for number in range(-(-self.size // self.part_bytes)) if number not in done]
        self.advance(sum(self._span(number)[1] for number in done))
        futures = {pool.submit(self._part, number) for number in parts}
        try:
            finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()
        except NoRanges:
            self._quit(futures)
            self._whole()
        except BaseException:
            self._quit(futures)
            raise
        return self.partial

    def discard(self) -> None:
        """Remove what was fetched."""
        self.partial.unlink(missing_ok=True)
        self.journal.unlink(missing_ok=True)

    def _quit(self, futures: set[Any]) -> None:
        self.stop.set()
        for future in futures:
            future.cancel()
        wait(futures)
        self.stop.clear()

    def _prepare(self) -> set[int]:
        """Parts that an earlier process completed; an unfitting journal is thrown away."""
        self.target.parent.mkdir(parents=True, exist_ok=True)
        head = f"{self.size} {self.part_bytes}"
        lines = self.journal.read_text().split("\n") if self.journal.is_file() else []
        whole = self.partial.is_file() and self.partial.stat().st_size == self.size
        if whole and lines and lines[0] == head:
            # The last line lacks its line end when the process died while writing it.
            return {int(line) for line in lines[1:-1] if line.isdigit()}
        self.discard()
        with self.partial.open("wb") as stream:
            stream.truncate(self.size)
        self.journal.write_text(head + "\n")
        return set()

    def _span(self, number: int) -> tuple[int, int]:
        start = number * self.part_bytes
        return start, min(self.part_bytes, self.size - start)

    def _part(self, number: int) -> None:
        start, length = self._span(number)
        with self.partial.open("r+b", buffering=0) as stream:
            self._copy(stream, start, length, ranged=self.size > self.part_bytes)
        with self.lock, self.journal.open("a") as journal:
            journal.write(f"{number}\n")

    def _whole(self) -> None:
        with self.partial.open("r+b", buffering=0) as stream:
            self._copy(stream, 0, self.size, ranged=False)

    def _copy(self, stream: Any, start: int, length: int, *, ranged: bool) -> None:
        """Fetch ``length`` bytes to their place, going on after breaks for a while."""
        position, failures, renewed = 0, 0, False
        renew = False
        while position < length:
            if not ranged:
                position = 0
            url, headers = self.address(renew)
            renew = False
            wanted = dict(headers)
            if ranged:
                wanted["Range"] = f"bytes={start + position}-{start + length - 1}"
            before = position
            error: Exception | None = None
            try:
                with self.open_url(url, wanted) as response:
                    _check(int(response.status_code), url, ranged=ranged)
                    # Raw and as it arrives: a buffer in between would be lost with the line.
                    for block in response.iter_raw():
                        position += self._write(stream, block, start, position, length)
            except Refused as refusal:
                error = refusal
                if refusal.status in EXPIRED and not renewed:
                    renew = renewed = True
                elif refusal.status not in RETRIED:
                    raise
            except httpx2.TransportError as broken:
                error = broken
            if position < length:
                failures = 1 if ranged and position > before else failures + 1
                if failures >= ATTEMPTS:
                    raise Interrupted(str(error or "the connection was closed early")) from error
                self.stop.wait(min(self.wait_s * 2 ** (failures - 1), 30.0))

    def _write(self, stream: Any, block: bytes, start: int, position: int, length: int) -> int:
        if self.stop.is_set():
            raise Interrupted("stopped")
        piece = memoryview(block)[: length - position]
        os.pwrite(stream.fileno(), piece, start + position)
        self.advance(len(piece))
        return len(piece)


def _check(status: int, url: str, *, ranged: bool) -> None:
    if status not in (200, 206):
        raise Refused(status, url)
    if ranged and status == 200:
        raise NoRanges


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold ``path`` as a lock against other processes that fetch the same file."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
        yield
