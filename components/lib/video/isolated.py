"""Decoding in child processes: a decoder that crashes, hangs or eats memory costs one video.

Each child speaks lines of JSON over its pipes, has a limit on memory and on the size of files it
may write (zero unless it cuts videos), and is killed when a request takes too long. Nothing that
a child says is trusted beyond being JSON of the expected shape. A child serves many requests, so
the price of isolation is about a millisecond per video after the first.
"""

from __future__ import annotations

import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from components.lib.system.child_process import harmless_environment
from components.lib.video.container import VideoError
from components.lib.video.inspection import Inspection
from components.lib.video.probe import Check

MEMORY_BYTES = 8 << 30
_LONGEST_ANSWER = 1 << 20


class Child:
    """One decoding process, started when first used and again after it was lost."""

    def __init__(self, memory_bytes: int = MEMORY_BYTES, file_bytes: int = 0) -> None:
        self.limits = (str(memory_bytes), str(file_bytes))
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a request, give its answer. Raises VideoError when the child dies or is late."""
        name = str(request.get("path", "the video"))
        process = self._running()
        assert process.stdin is not None and process.stdout is not None, "pipes were asked for"
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            line = _read_line(process.stdout.fileno(), timeout_s)
        except BrokenPipeError:
            line = b""
        except TimeoutError:
            self.close()
            raise VideoError(name, f"decoding it did not finish within {timeout_s:.0f} s") from None
        if not line.endswith(b"\n"):
            code = self.close()
            how = signal.Signals(-code).name if code < 0 else f"status {code}"
            raise VideoError(name, f"the decoder crashed on it ({how})")
        answer = json.loads(line)
        return answer if isinstance(answer, dict) else {}

    def close(self) -> int:
        """Kill the child; its exit status, 0 when there was none."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        if process.stdin is not None:
            with suppress(BrokenPipeError):  # it died with a request unread
                process.stdin.close()
        try:
            process.wait(timeout=0.5)  # a crash needs a moment to become an exit status
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
        return process.returncode

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is None or self.process.poll() is not None:
            self.close()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "components.lib.video.child", *self.limits],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=harmless_environment(),
                start_new_session=True,
            )
        return self.process


def _read_line(descriptor: int, timeout_s: float) -> bytes:
    deadline = time.monotonic() + timeout_s
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            piece = os.read(descriptor, 1 << 16)
            if not piece or len(line) > _LONGEST_ANSWER:
                return line
            line += piece
    return line


class DecodingPool:
    """Up to ``workers`` children; any number of threads may ask at once. A context manager.

    ``file_bytes`` is the largest file a child may write, for `cut`.
    """

    def __init__(
        self, workers: int, *, memory_bytes: int = MEMORY_BYTES, file_bytes: int = 0
    ) -> None:
        self.children = [Child(memory_bytes, file_bytes) for _ in range(workers)]
        self.idle: queue.SimpleQueue[Child] = queue.SimpleQueue()
        for child in self.children:
            self.idle.put(child)
        self.threads = max(1, (os.cpu_count() or 1) // workers)

    def __enter__(self) -> DecodingPool:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.children:
            child.close()

    def inspect(
        self, path: Path, *, check: Check, pictures: bool, timeout_s: float
    ) -> Inspection | str:
        """Inspect a file in a child; a reason (text) when the child was lost over it."""
        request = {
            "do": "inspect",
            "path": os.fsdecode(path),
            "check": check,
            "pictures": pictures,
            "threads": self.threads,
        }
        with self._child() as child:
            try:
                answer = child.ask(request, timeout_s)
                return Inspection.model_validate(answer)
            except VideoError as error:
                return error.reason
            except (ValidationError, json.JSONDecodeError):
                return "the decoder gave no sensible answer about it"

    def cut(
        self,
        path: Path,
        clips: Sequence[tuple[int, int | None, Path]],
        *,
        crf: int,
        timeout_s: float,
    ) -> list[str]:
        """Cut (start, count, target) clips out of a video with `cut_mp4`, in one child.

        Returns the method of each. Raises VideoError with the reason when one cannot be made.
        """
        request = {
            "do": "cut",
            "path": os.fsdecode(path),
            "clips": [[start, count, os.fsdecode(target)] for start, count, target in clips],
            "crf": crf,
        }
        with self._child() as child:
            answer = child.ask(request, timeout_s)
        if reason := answer.get("reason"):
            raise VideoError(str(path), str(reason))
        methods = [str(method) for method in answer.get("methods", [])]
        if len(methods) != len(clips):
            raise VideoError(str(path), "the decoder gave no sensible answer about it")
        return methods

    def scenes(
        self, path: Path, *, threshold: float, min_frames: int, timeout_s: float
    ) -> list[tuple[int, int]]:
        """`find_scenes` in a child. Raises VideoError with the reason when it cannot be done."""
        request = {
            "do": "scenes",
            "path": os.fsdecode(path),
            "threshold": threshold,
            "min_frames": min_frames,
            "threads": self.threads,
        }
        with self._child() as child:
            answer = child.ask(request, timeout_s)
        if reason := answer.get("reason"):
            raise VideoError(str(path), str(reason))
        found = [(int(start), int(count)) for start, count in answer.get("scenes", [])]
        if not found:
            raise VideoError(str(path), "the decoder gave no sensible answer about it")
        return found

    @contextmanager
    def _child(self) -> Iterator[Child]:
        child = self.idle.get()
        try:
            yield child
        finally:
            self.idle.put(child)
