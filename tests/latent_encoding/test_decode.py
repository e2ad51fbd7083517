"""The decoding processes: the right frames in shared memory, and failures that stay contained."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from components.latent_encoding.decode import DecodedClip, DecodePool, RunEnded, RunRequest
from components.lib.video.container import VideoError
from components.lib.video.frames import read_clip

SIZE = (48, 80)


def request(
    tag: str, source: Path, starts: list[int], *, fps: float | None = None, resize: str = "crop"
) -> RunRequest:
    path: Future[Path] = Future()
    path.set_result(source)
    return RunRequest(
        tag=tag, path=path, starts=tuple(starts), length=9, fps=fps,
        height=SIZE[0], width=SIZE[1], resize=resize,
    )  # fmt: skip


def ring(frames: int) -> int:
    return frames * SIZE[0] * SIZE[1] * 3


def collect(pool: DecodePool, requests: list[RunRequest]) -> tuple[dict[Any, Any], dict[str, Any]]:
    """(tag, clip) -> frames, and tag -> how its run ended."""
    frames: dict[Any, Any] = {}
    ends: dict[str, Any] = {}
    for event in pool.run(iter(requests)):
        if isinstance(event, DecodedClip):
            assert (event.tag, event.clip) not in frames
            frames[event.tag, event.clip] = np.concatenate(event.pieces)
            event.release()
        else:
            ends[event.tag] = event
    return frames, ends


@pytest.mark.parametrize("capacity", [9, 10, 14, 40])
def test_overlapping_clips_come_out_right_whatever_the_rings_size(
    clips: dict[str, Path], capacity: int
) -> None:
    starts = [0, 1, 5, 9, 30, 31, 120]
    with DecodePool(1, ring(capacity), 60) as pool:
        frames, ends = collect(pool, [request("bikes", clips["bikes"], starts)])
    assert ends["bikes"].reason is None
    for position, start in enumerate(starts):
        expected = read_clip(clips["bikes"], start=start, count=9, size=SIZE)
        np.testing.assert_array_equal(frames["bikes", position], expected)


def test_frame_rate_conversion_and_resizing_reach_the_frames(clips: dict[str, Path]) -> None:
    path = clips["bikes"]
    run = request("r", path, [3, 7], fps=12.0, resize="stretch")
    with DecodePool(1, ring(20), 60) as pool:
        frames, _ = collect(pool, [run])
    expected = read_clip(path, start=7, count=9, size=SIZE, resize="stretch", fps=12.0)
    np.testing.assert_array_equal(frames["r", 1], expected)


def test_a_bad_file_fails_alone(clips: dict[str, Path], tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clips["carphone"].read_bytes()[:20_000])
    late: Future[Path] = Future()
    late.set_exception(VideoError("gone.mp4", "it is gone"))
    requests = [
        request("text", text, [0]),
        request("cut", cut, [0]),
        replace(request("gone", text, [0]), path=late),
        request("good", clips["bikes"], [4]),
        request("short", clips["bikes"], [0, 245]),
    ]
    with DecodePool(2, ring(12), 60) as pool:
        frames, ends = collect(pool, requests)
    assert set(frames) == {("good", 0), ("short", 0)}  # what was decodable is kept
    assert ends["good"].reason is None
    assert "readable video" in ends["text"].reason
    assert ends["gone"].reason == "it is gone"
    assert "it has 250" in ends["short"].reason
    assert ends["short"].clips_done == 1
    assert ends["cut"].reason
    assert not any(end.transient for end in ends.values())


def test_a_crashed_decoder_is_replaced_and_its_run_goes_on(clips: dict[str, Path]) -> None:
    starts = list(range(0, 200, 5))
    frames: dict[int, Any] = {}
    killed = False
    with DecodePool(1, ring(12), 60) as pool:
        for event in pool.run(iter([request("r", clips["bikes"], starts)])):
            if isinstance(event, RunEnded):
                assert event.reason is None
                continue
            assert event.clip not in frames
            frames[event.clip] = np.concatenate(event.pieces)
            event.release()
            if event.clip == 10 and not killed:
                killed = True
                os.kill(pool.workers[0].process.pid, signal.SIGSEGV)
        assert pool.restarts == 1
    for clip, start in enumerate(starts):
        expected = read_clip(clips["bikes"], start=start, count=9, size=SIZE)
        np.testing.assert_array_equal(frames[clip], expected)


def test_a_decoder_that_always_crashes_costs_only_its_video(clips: dict[str, Path]) -> None:
    ends: dict[str, RunEnded] = {}
    got = []
    with DecodePool(1, ring(12), 60) as pool:
        requests = [
            request("bad", clips["bikes"], [0, 90, 200]),
            request("good", clips["bikes"], [3]),
        ]
        for event in pool.run(iter(requests)):
            if isinstance(event, RunEnded):
                ends[event.tag] = event
            elif event.tag == "bad":
                os.kill(pool.workers[0].process.pid, signal.SIGKILL)
            else:
                got.append(event.clip)
                event.release()
    assert ends["bad"].transient
    assert "SIGKILL" in str(ends["bad"].reason)
    assert ends["bad"].clips_done == 2  # one for each attempt
    assert ends["good"].reason is None
    assert got == [0]


def test_a_hanging_decoder_is_given_up(clips: dict[str, Path]) -> None:
    with DecodePool(1, ring(12), 1.0) as pool:
        stop = threading.Event()

        def freeze() -> None:
            while not stop.wait(0.01):
                for worker in pool.workers[:1]:
                    worker.process.send_signal(signal.SIGSTOP)

        thread = threading.Thread(target=freeze)
        thread.start()
        try:
            _, ends = collect(pool, [request("r", clips["bikes"], [0, 100, 200])])
        finally:
            stop.set()
            thread.join()
        assert " 1 s" in ends["r"].reason
        assert ends["r"].transient


def test_no_process_outlives_the_pool(clips: dict[str, Path]) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with DecodePool(2, ring(12), 60) as pool:
        for event in pool.run(iter([request("r", clips["bikes"], [0, 20])])):
            assert isinstance(event, DecodedClip)
            break
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


def test_decoders_see_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-store")
    with DecodePool(1, ring(12), 60) as pool:
        environ = Path(f"/proc/{pool.workers[0].process.pid}/environ").read_bytes()
    assert b"secret-of-the-store" not in environ
