"""Mutation fuzz of the video readers: 2,000 broken files must not crash, hang or escape.

    python -m tests.lib.video.fuzz [--full | --count N] [--seed S]

Valid files of several kinds are damaged at random (bytes changed, ranges removed, doubled or
zeroed, sizes and counts in headers replaced, tails cut) and inspected in decoding children, the
way discovery does, with a full check and with picture sampling. Every answer must be an
inspection; the folder must hold the same files with the same content before and after.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from components.lib.video.inspection import Inspection
from components.lib.video.isolated import DecodingPool
from tests.lib.video import corpus

SEEDS = ("plain", "edit_list", "open_gop", "wrong_extension", "no_time_stamps", "transport_stream")
TIMEOUT_S = 60.0


def mutate(data: bytes, dice: random.Random) -> bytes:
    """A damaged copy."""
    broken = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 4, 16))):
        where = dice.randrange(len(broken)) if broken else 0
        length = min(dice.choice((1, 4, 16, 256)), len(broken) - where)
        match dice.randrange(7):
            case 0:
                broken[where : where + length] = dice.randbytes(length)
            case 1:
                del broken[where : where + length]
            case 2:
                broken[where:where] = broken[where : where + length]
            case 3:
                broken[where : where + length] = bytes(length)
            case 4:
                number = dice.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFF))
                broken[where : where + 4] = number.to_bytes(4)
            case 5:
                del broken[where:]
            case _:
                _overwrite_header_field(broken, dice)
    return bytes(broken)


def _overwrite_header_field(broken: bytearray, dice: random.Random) -> None:
    """Aim at the tables of an MP4, which are small beside its frames."""
    boxes = (
        b"stsz",
        b"stts",
        b"ctts",
        b"stsc",
        b"stco",
        b"elst",
        b"tkhd",
        b"mdhd",
        b"avcC",
        b"moov",
    )
    at = broken.find(dice.choice(boxes))
    if at >= 0:
        where = at + dice.randrange(-4, 40)
        broken[where : where + 4] = dice.randbytes(4)


def run(count: int, seed: int, workers: int) -> Counter[str]:
    """Fuzz; how often each kind of answer came. Raises AssertionError at the first bad one."""
    dice = random.Random(seed)
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch, DecodingPool(workers) as pool:
        folder = Path(scratch) / "videos"
        folder.mkdir()
        seeds = [corpus.USABLE[name](folder / f"{name}.mp4").read_bytes() for name in SEEDS]
        for path in folder.iterdir():
            path.unlink()

        def one(number: int) -> str:
            path = folder / f"{number}.mp4"
            found = pool.inspect(path, check="all", pictures=True, timeout_s=TIMEOUT_S)
            if isinstance(found, str):
                return f"lost: {found}"
            assert isinstance(found, Inspection)
            return "usable" if found.probe else "refused"

        for start in range(0, count, 200):
            numbers = range(start, min(start + 200, count))
            for number in numbers:
                (folder / f"{number}.mp4").write_bytes(mutate(dice.choice(seeds), dice))
            before = _state(Path(scratch))
            with ThreadPoolExecutor(workers) as threads:
                outcomes.update(threads.map(one, numbers))
            assert _state(Path(scratch)) == before, "a decoder wrote into the folder"
            for number in numbers:
                (folder / f"{number}.mp4").unlink()
    return outcomes


def _state(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Fuzz the video readers.")
    parser.add_argument("--full", action="store_true", help="2,000 files")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    count = 2000 if options.full else options.count
    outcomes = run(count, options.seed, len(os.sched_getaffinity(0)))
    lost = {reason: n for reason, n in outcomes.items() if reason.startswith("lost")}
    print(f"{count} files in {time.monotonic() - started:.0f} s: {dict(outcomes)}")
    if lost:
        raise SystemExit(f"decoding children were lost: {lost}")


if __name__ == "__main__":
    main()
