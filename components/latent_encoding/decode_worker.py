"""The child process that decodes: one run of clips at a time into a ring of frames.

The ring is memory shared with the parent (an anonymous file, handed over by descriptor, so
nothing stays behind when either side is killed). Overlapping clips are windows on the same ring:
each frame is decoded, resized and stored once however many clips show it. A frame is overwritten
only when the parent has released every clip that contains it.

Messages are JSON over a socket pair. Parent: a run, ``{"released": n}`` (clips released so far
in this run). Worker: ``{"clip": position}``, ``{"tick": frames}`` (a sign of life),
``{"failed": reason}``, ``{"done": …}``. The worker ends when the parent closes the socket.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from components.lib.system.child_process import bound_resources, die_with_parent
from components.lib.video.container import VideoError
from components.lib.video.frames import iter_frames

TICK_S = 1.0
MEMORY_BYTES = 8 << 30
# Decoding runs ahead as far as its ring allows; the encoder, which all else waits for, goes first.
NICE = 5

Frame = np.ndarray[Any, np.dtype[np.uint8]]


class Ring:
    """Frames [capacity, H, W, 3] uint8 in shared memory, addressed by ever-growing position."""

    def __init__(self, memory: mmap.mmap, frame_shape: tuple[int, int, int]) -> None:
        size = int(np.prod(frame_shape))
        self.capacity = len(memory) // size
        count = self.capacity * size
        self.frames: Frame = np.frombuffer(memory, np.uint8, count).reshape(
            self.capacity, *frame_shape
        )

    def window(self, start: int, length: int) -> list[Frame]:
        """Views on ``length`` frames from ``start``: one, or two where the ring wraps."""
        begin = start % self.capacity
        head = self.frames[begin : begin + length]
        tail = length - len(head)
        return [head, self.frames[:tail]] if tail else [head]


def timeline(path: Path, run: dict[str, Any]) -> Iterator[tuple[int, Frame]]:
    """(position, frame) at the run's rate, from its first clip's start to its last clip's end."""
    first, last = run["starts"][0], run["starts"][-1] + run["length"]
    frames = iter_frames(
        path,
        start=first,
        count=last - first,
        size=(run["height"], run["width"]),
        resize=run["resize"],
        fps=run["fps"],
        threads=run["threads"],
    )
    return enumerate(frames, first)


def decode_run(connection: Connection, memory: mmap.mmap, run: dict[str, Any]) -> None:
    """Decode one run, announcing each clip when its last frame is in the ring."""
    starts, length = run["starts"], run["length"]
    ring = Ring(memory, (run["height"], run["width"], 3))
    announced = released = frames = 0
    decode_s = wait_s = 0.0
    mark = ticked = time.monotonic()
    for position, frame in timeline(Path(run["path"]), run):
        now = time.monotonic()
        decode_s += now - mark
        frames += 1
        if announced < len(starts) and position >= starts[announced]:
            # Reading releases as they come keeps the parent from ever blocking on a full socket.
            while connection.poll() or (
                released < announced and position - starts[released] >= ring.capacity
            ):
                released = json.loads(connection.recv_bytes())["released"]
            wait_s += time.monotonic() - now
            ring.frames[position % ring.capacity] = frame
        while announced < len(starts) and position == starts[announced] + length - 1:
            send(connection, {"clip": announced})
            announced += 1
        mark = time.monotonic()
        if mark - ticked > TICK_S:
            send(connection, {"tick": frames})
            ticked = mark
    send(connection, {"done": {"frames": frames, "decode_s": decode_s, "wait_s": wait_s}})


def send(connection: Connection, message: dict[str, Any]) -> None:
    """One JSON message."""
    connection.send_bytes(json.dumps(message).encode())


def main() -> None:
    """Serve runs until the parent goes away. Arguments: socket and ring descriptors, ring bytes."""
    die_with_parent()
    os.nice(NICE)
    bound_resources(int(sys.argv[3]) + MEMORY_BYTES)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    socket, ring, size = (int(value) for value in sys.argv[1:4])
    connection = Connection(socket)
    memory = mmap.mmap(ring, size)
    os.close(ring)
    try:
        while True:
            message = json.loads(connection.recv_bytes())
            if "path" not in message:
                continue  # a release that crossed the end of the run
            try:
                decode_run(connection, memory, message)
            except (EOFError, BrokenPipeError):
                raise
            except VideoError as error:
                send(connection, {"failed": error.reason})
            except MemoryError:
                send(connection, {"failed": "decoding it needs more memory than allowed"})
    except (EOFError, BrokenPipeError):
        return


if __name__ == "__main__":
    main()
