"""Packing videos into tar shards against ``tar cf`` of the same files on the same disk.

Ours also checks every video against its sha256, writes the sample's JSON, and knows where every
part lies for the index; tar only copies. Megabytes per second, best of several turns.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from components.lib.manifest import file_sha256
from components.lib.shards.tar import ShardWriter

Row = tuple[str, float, float, float]
GOAL = 0.8


def rows(short: bool = False) -> Iterator[Row]:
    """(name, our MB/s, tar's, ratio)."""
    count, size = (20, 8 << 20) if short else (100, 20 << 20)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "videos"
        folder.mkdir()
        noise = np.random.default_rng(0)
        files = [folder / f"{number}.mp4" for number in range(count)]
        for file in files:
            file.write_bytes(noise.bytes(size))
        digests = [file_sha256(file) for file in files]
        target = Path(scratch) / "out"
        ours, peer = 0.0, 0.0
        for _ in range(2 if short else 4):
            ours = max(ours, count * size / 1e6 / _ours(files, digests, target))
            peer = max(peer, count * size / 1e6 / _peer(folder, target))
        yield "pack tar shards from local disk (MB/s)", ours, peer, ours / peer


def _ours(files: list[Path], digests: list[str], target: Path) -> float:
    workers = len(os.sched_getaffinity(0))
    started = time.perf_counter()
    with ThreadPoolExecutor(workers) as threads:
        list(
            threads.map(
                lambda part: _pack(files[part::workers], digests[part::workers], target, part),
                range(workers),
            )
        )
    os.sync()
    seconds = time.perf_counter() - started
    shutil.rmtree(target)
    return seconds


def _pack(files: list[Path], digests: list[str], target: Path, part: int) -> None:
    with ShardWriter(target, first=part, max_bytes=1 << 40) as writer:
        for file, digest in zip(files, digests, strict=True):
            if file_sha256(file) != digest:
                raise SystemExit(f"{file} changed during the benchmark")
            writer.write(file.stem, {"mp4": file, "json": b"{}"})


def _peer(folder: Path, target: Path) -> float:
    target.mkdir(exist_ok=True)
    started = time.perf_counter()
    subprocess.run(["tar", "cf", str(target / "all.tar"), "-C", str(folder), "."], check=True)
    os.sync()
    seconds = time.perf_counter() - started
    shutil.rmtree(target)
    return seconds


if __name__ == "__main__":
    for row in rows(short="--short" in sys.argv):
        print("\t".join(str(value) for value in row), flush=True)
