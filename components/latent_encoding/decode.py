"""A pool of decoding processes that turns runs of clips into frames in shared memory.

A decoder works on bytes from strangers; here it may crash or hang without taking the stage along.
Each worker has its own ring of frames and its own socket, and the parent looks at whichever
worker has something to say, so one slow video stops nobody and nothing can deadlock: a worker
waits only for clips of its own ring to be released, and the parent never waits for a certain
worker. A worker that dies or falls silent is replaced and its run tried once more; the second
time the run's remaining clips are reported as failed.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

from components.latent_encoding.decode_worker import Frame, Ring, send
from components.lib.system.child_process import harmless_environment
from components.lib.video.container import VideoError

ATTEMPTS = 2


@dataclass(frozen=True)
class RunRequest:
    """One pass over one video: clips of ``length`` frames at ``starts`` (ascending).

    Starts count frames at ``fps`` (None: the file's own); frames come out ``height`` x ``width``.
    ``path`` is resolved when the file is local; ``tag`` comes back with all that belongs to it.
    """

    tag: Any
    path: Future[Path]
    starts: tuple[int, ...]
    length: int
    fps: float | None
    height: int
    width: int
    resize: str


@dataclass(frozen=True)
class DecodedClip:
    """Clip number ``clip`` of a run, as one or two arrays [n, H, W, 3] that follow each other.

    The arrays are views of the ring: copy them, then call ``release``.
    """

    tag: Any
    clip: int
    pieces: list[Frame]
    release: Callable[[], None]


@dataclass(frozen=True)
class RunEnded:
    """A run is over. Clips from number ``clips_done`` on failed when ``reason`` is set.

    ``transient``: the decoder crashed or hung, which another attempt might not.
    """

    tag: Any
    clips_done: int
    reason: str | None
    transient: bool = False
    frames: int = 0
    decode_s: float = 0.0


class _Worker:
    """One child process with its ring and socket."""

    def __init__(self, ring_bytes: int, threads: int) -> None:
        descriptor = os.memfd_create("cosmos-frames")
        os.ftruncate(descriptor, ring_bytes)
        self.memory = mmap.mmap(descriptor, ring_bytes)
        self.connection, theirs = Pipe()
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "components.latent_encoding.decode_worker",
                *map(str, (theirs.fileno(), descriptor, ring_bytes)),
            ],
            pass_fds=(theirs.fileno(), descriptor),
            stdin=subprocess.DEVNULL,
            env=harmless_environment(),
        )
        theirs.close()
        os.close(descriptor)
        self.threads = threads
        self.request: RunRequest | None = None
        self.attempt = self.known = 0
        self.delivered = self.released = 0
        self.heard = time.monotonic()

    def start(self, request: RunRequest, attempt: int, known: int) -> None:
        """Give it a run whose file is there; its first ``known`` clips came out before."""
        self.request, self.attempt, self.known = request, attempt, known
        self.delivered = self.released = 0
        self.heard = time.monotonic()
        send(
            self.connection,
            {
                "path": str(request.path.result()),
                "starts": request.starts,
                "length": request.length,
                "fps": request.fps,
                "height": request.height,
                "width": request.width,
                "resize": request.resize,
                "threads": self.threads,
            },
        )

    def release(self) -> None:
        """The parent is through with the oldest delivered clip of this run."""
        self.released += 1
        self.heard = time.monotonic()
        with contextlib.suppress(OSError):  # it died: the pool notices on its socket
            send(self.connection, {"released": self.released})

    def window(self, clip: int) -> list[Frame]:
        """Views on a delivered clip."""
        assert self.request is not None
        request = self.request
        ring = Ring(self.memory, (request.height, request.width, 3))
        return ring.window(request.starts[clip], request.length)

    def silent(self, timeout_s: float) -> bool:
        """Whether it should have said something by now (it may wait for releases silently)."""
        waiting_for_us = self.delivered > self.released
        return not waiting_for_us and time.monotonic() - self.heard > timeout_s

    def stop(self) -> int:
        """End it and return its exit status."""
        self.process.kill()
        status = self.process.wait()
        self.connection.close()
        return status


# A request, the number of the attempt, and how many of its clips an earlier attempt delivered.
_Job = tuple[RunRequest, int, int]


class DecodePool:
    """``workers`` decoding processes. Use as a context manager; `run` may be called once."""

    def __init__(self, workers: int, ring_bytes: int, timeout_s: float, threads: int = 1) -> None:
        self.count, self.ring_bytes = workers, ring_bytes
        self.timeout_s, self.threads = timeout_s, threads
        self.workers = [_Worker(ring_bytes, threads) for _ in range(workers)]
        self.restarts = 0
        self.wait_s = 0.0

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.stop()
        self.workers.clear()

    def run(self, requests: Iterator[RunRequest]) -> Iterator[DecodedClip | RunEnded]:
        """Decode all runs; clips of one run come in order, runs in any order.

        Requests are taken from the iterator when a worker is free for them. A `DecodedClip` must
        be released before its successor in the same run can be relied upon to arrive. A
        `VideoError` of a request's ``path`` ends its run; any other error is raised here.
        """
        queue: deque[_Job] = deque()
        source: Iterator[RunRequest] | None = requests
        ours, wake = Pipe(duplex=False)
        with ours, wake:
            while True:
                source = self._assign(queue, source, wake)
                busy = [worker for worker in self.workers if worker.request is not None]
                if not busy and not queue:
                    return
                begun = time.monotonic()
                ready = wait([ours, *(w.connection for w in busy)], timeout=1.0)
                self.wait_s += time.monotonic() - begun
                if ours in ready:
                    ours.recv_bytes()
                for job in [job for job in queue if _unusable(job[0])]:
                    queue.remove(job)
                    yield RunEnded(job[0].tag, job[2], _unusable(job[0]))
                for worker in busy:
                    if worker.connection in ready:
                        yield from self._hear(worker, queue)
                    elif worker.silent(self.timeout_s):
                        reason = f"the decoder made no progress for {self.timeout_s:g} s"
                        yield from self._replace(worker, queue, reason)

    def _assign(
        self,
        queue: deque[_Job],
        source: Iterator[RunRequest] | None,
        wake: Connection,
    ) -> Iterator[RunRequest] | None:
        """Give work to free workers; a queue of runs beyond them lets their files come ahead."""
        while source is not None and len(queue) < self.count + 1:
            request = next(source, None)
            if request is None:
                source = None
            else:
                request.path.add_done_callback(lambda _: _poke(wake))
                queue.append((request, 1, 0))
        # A file that is still on its way does not hold up the ones that are here.
        for item in [item for item in queue if item[0].path.done() and not _unusable(item[0])]:
            worker = self._free_worker()
            if worker is None:
                break
            queue.remove(item)
            worker.start(*item)
        return source

    def _free_worker(self) -> _Worker | None:
        for worker in self.workers:
            if worker.request is None:
                return worker
        if len(self.workers) < self.count:
            self.workers.append(_Worker(self.ring_bytes, self.threads))
            return self.workers[-1]
        return None

    def _hear(self, worker: _Worker, queue: deque[_Job]) -> Iterator[DecodedClip | RunEnded]:
        request = worker.request
        assert request is not None
        try:
            message = json.loads(worker.connection.recv_bytes())
        except (EOFError, ConnectionError):
            yield from self._replace(worker, queue, None)
            return
        worker.heard = time.monotonic()
        if "clip" in message:
            worker.delivered += 1
            clip = message["clip"]
            if clip < worker.known:
                worker.release()
            else:
                yield DecodedClip(request.tag, clip, worker.window(clip), worker.release)
        elif "done" in message:
            worker.request = None
            done = message["done"]
            yield RunEnded(
                request.tag,
                worker.delivered,
                None,
                frames=done["frames"],
                decode_s=done["decode_s"],
            )
        elif "failed" in message:
            worker.request = None
            done_clips = max(worker.delivered, worker.known)
            yield RunEnded(request.tag, done_clips, message["failed"])

    def _replace(
        self, worker: _Worker, queue: deque[_Job], reason: str | None
    ) -> Iterator[RunEnded]:
        request, delivered = worker.request, max(worker.delivered, worker.known)
        assert request is not None
        status = worker.stop()
        self.workers.remove(worker)
        self.restarts += 1
        if worker.attempt < ATTEMPTS:
            queue.appendleft((request, worker.attempt + 1, delivered))
            return
        yield RunEnded(request.tag, delivered, reason or _describe_exit(status), True)


def _unusable(request: RunRequest) -> str | None:
    """Why the request's file cannot be had, None while it may still come."""
    error = request.path.exception() if request.path.done() else None
    return error.reason if isinstance(error, VideoError) else None


def _describe_exit(status: int) -> str:
    if status < 0:
        return f"the decoder crashed ({signal.Signals(-status).name})"
    return f"the decoder ended with status {status}"


def _poke(wake: Connection) -> None:
    with contextlib.suppress(OSError):  # the pool is gone: a late download interests nobody
        wake.send_bytes(b"!")
