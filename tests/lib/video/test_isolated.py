"""Decoding in child processes: what a crash, a hang, a bomb or an escape costs."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.lib.video.container import VideoError
from components.lib.video.inspection import Inspection
from components.lib.video.isolated import Child, DecodingPool
from components.lib.video.probe import probe
from tests.lib.video import corpus


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodingPool]:
    with DecodingPool(1, file_bytes=1 << 30) as pool:
        yield pool


def inspect(pool: DecodingPool, path: Path, timeout_s: float = 60.0) -> Inspection | str:
    return pool.inspect(path, check="ends", pictures=True, timeout_s=timeout_s)


def test_a_child_finds_what_the_parent_would(pool: DecodingPool, clips: dict[str, Path]) -> None:
    found = inspect(pool, clips["bikes"])
    assert isinstance(found, Inspection)
    assert found.probe == probe(clips["bikes"])
    assert found.bytes == clips["bikes"].stat().st_size
    assert found.look is not None and found.look.change > 20


def test_a_late_child_is_killed_and_replaced(pool: DecodingPool, clips: dict[str, Path]) -> None:
    reason = inspect(pool, clips["bigbuckbunny"], timeout_s=0.0)
    assert isinstance(reason, str) and "did not finish" in reason
    assert isinstance(inspect(pool, clips["bikes"]), Inspection)


def test_a_crash_costs_one_video(clips: dict[str, Path]) -> None:
    with DecodingPool(1) as pool:
        inspect(pool, clips["carphone"])
        child = pool.children[0].process
        assert child is not None
        threading.Timer(0.02, child.kill).start()
        answers = [inspect(pool, clips["bigbuckbunny"]) for _ in range(3)]
        lost = [answer for answer in answers if isinstance(answer, str)]
        assert len(lost) <= 1 and all("crashed" in reason for reason in lost)
        assert isinstance(answers[-1], Inspection)


def test_a_pipe_is_not_waited_for(pool: DecodingPool, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.mp4"
    os.mkfifo(fifo)
    answer = inspect(pool, fifo, timeout_s=1.0)  # a hang would meet the test's own limit
    assert isinstance(answer, str) or answer.reason


def test_memory_is_limited(clips: dict[str, Path], tmp_path: Path) -> None:
    path = corpus.write(tmp_path / "huge.mkv", corpus.pictures(1, 6000, 8000), codec="ffv1")
    with DecodingPool(1, memory_bytes=700 << 20) as pool:
        assert isinstance(inspect(pool, clips["carphone"]), Inspection)
        answer = inspect(pool, path)
        assert isinstance(answer, str) or answer.probe is None
        assert isinstance(inspect(pool, clips["carphone"]), Inspection)


def test_a_child_gets_no_secrets_and_cannot_write(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    source = corpus.wrong_extension(tmp_path / "source.mp4")
    with DecodingPool(1) as pool:
        inspect(pool, source)
        child = pool.children[0].process
        assert child is not None
        environment = Path(f"/proc/{child.pid}/environ").read_bytes()
        assert b"hidden" not in environment and b"AWS" not in environment
        target = tmp_path / "made.mp4"
        with pytest.raises(VideoError):
            pool.cut(source, [(0, None, target)], crf=18, timeout_s=60)
        assert not target.exists() or target.stat().st_size == 0


def test_children_die_with_their_parent(tmp_path: Path, clips: dict[str, Path]) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from components.lib.video.isolated import DecodingPool\n"
        "pool = DecodingPool(1)\n"
        f"pool.inspect(Path({str(clips['carphone'])!r}), check='first', pictures=False, "
        "timeout_s=60)\n"
        "print(pool.children[0].process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    import subprocess

    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 120
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()


def test_many_threads_share_few_children(clips: dict[str, Path]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with DecodingPool(2) as pool, ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda _: inspect(pool, clips["carphone"]), range(12)))
        assert len({answer.sha256 for answer in answers if isinstance(answer, Inspection)}) == 1
        assert len(pool.children) == 2


def test_closing_a_child_that_never_ran() -> None:
    assert Child().close() == 0
