"""Streaming, seeking, rates and ranges of `iter_frames` and its relatives."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.lib.video.container import VideoError
from components.lib.video.frames import iter_clips, iter_frames, read_clip
from components.lib.video.index import FrameIndex, build_index
from tests.lib.video import corpus


@pytest.fixture(scope="module")
def bikes(clips: dict[str, Path]) -> tuple[Path, FrameIndex, np.ndarray]:
    frames = np.stack(list(iter_frames(clips["bikes"], size=(68, 160))))
    return clips["bikes"], build_index(clips["bikes"]), frames


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(start=st.integers(0, 249), count=st.integers(1, 12))
def test_any_clip_equals_that_part_of_the_whole(
    bikes: tuple[Path, FrameIndex, np.ndarray], start: int, count: int
) -> None:
    path, index, whole = bikes
    count = min(count, 250 - start)
    clip = read_clip(path, start=start, count=count, size=(68, 160), index=index)
    assert np.array_equal(clip, whole[start : start + count])


def test_a_stream_is_read_like_a_file(bikes: tuple[Path, FrameIndex, np.ndarray]) -> None:
    path, _, whole = bikes
    with path.open("rb") as stream:
        clip = read_clip(stream, start=200, count=3, size=(68, 160))
    assert np.array_equal(clip, whole[200:203])


def test_frames_come_one_by_one(clips: dict[str, Path]) -> None:
    frames = iter_frames(clips["bigbuckbunny"])
    first = list(itertools.islice(frames, 3))
    frames.close()  # type: ignore[attr-defined]  # it is a generator; closing frees the decoder
    assert len(first) == 3
    assert not np.shares_memory(first[0], first[1])


def test_clips_may_overlap_and_come_in_order(
    bikes: tuple[Path, FrameIndex, np.ndarray],
) -> None:
    path, index, whole = bikes
    got = list(iter_clips(path, [100, 3, 5, 5], 10, size=(68, 160), index=index))
    assert [start for start, _ in got] == [3, 5, 5, 100]
    assert all(np.array_equal(clip, whole[start : start + 10]) for start, clip in got)


@pytest.mark.parametrize(("start", "count"), [(245, 6), (250, 1), (-1, 2), (0, 251)])
def test_frames_that_are_not_there_are_an_error(
    bikes: tuple[Path, FrameIndex, np.ndarray], start: int, count: int
) -> None:
    path, index, _ = bikes
    with pytest.raises(VideoError, match="it has 250"):
        read_clip(path, start=start, count=count, index=index)
    with pytest.raises(VideoError, match="it has 250"):
        list(iter_frames(path, start=start, count=count))


def test_a_lower_rate_keeps_the_frame_on_screen(
    bikes: tuple[Path, FrameIndex, np.ndarray],
) -> None:
    path, index, whole = bikes
    got = np.stack(list(iter_frames(path, fps=10, size=(68, 160), index=index)))
    assert np.array_equal(got, whole[np.arange(100) * 5 // 2])


def test_a_variable_rate_becomes_constant(tmp_path: Path) -> None:
    path = corpus.variable_rate(tmp_path / "vfr.mp4")
    index = build_index(path)
    shown = [corpus.number_of(frame) for frame in iter_frames(path, fps=50, index=index)]
    instants = np.arange(len(shown)) * 20
    wanted = [max(n for n, t in enumerate(corpus.VARIABLE_TIMES) if t <= at) for at in instants]
    assert shown == wanted
    assert len(shown) == round(index.duration * 50)


def test_a_constant_rate_that_rounds_is_not_variable(tmp_path: Path) -> None:
    times = [round(number * 1000 / 30) for number in range(30)]
    path = corpus.write(tmp_path / "ms.mkv", corpus.pictures(30), container="matroska", rate=30)
    assert times[1:3] == [33, 67]  # what Matroska stores
    assert not build_index(path).variable_rate
    assert build_index(path).fps == pytest.approx(30, rel=1e-3)


def test_seeking_in_interlaced_video_gives_the_frames_of_the_whole(
    clips: dict[str, Path], tmp_path: Path
) -> None:
    source = list(iter_frames(clips["bikes"], count=60, size=(136, 320)))
    woven = [
        np.where((np.arange(136) % 2 == 0)[:, None, None], first, second)
        for first, second in itertools.pairwise(source)
    ]
    options = {"x264-params": "tff=1", "crf": "5"}
    path = corpus.write(tmp_path / "woven.mp4", woven, options=options, interlaced=True, gop=6)
    whole = list(iter_frames(path))
    index = build_index(path)
    assert len(whole) == 59
    comb = np.abs(whole[30][::2].astype(int) - whole[30][1::2]).mean()
    assert comb < np.abs(woven[30][::2].astype(int) - woven[30][1::2]).mean()
    for start in range(12, 59):
        assert np.array_equal(read_clip(path, start=start, count=1, index=index)[0], whole[start])


def test_a_video_that_changes_size(tmp_path: Path) -> None:
    small = corpus.write(tmp_path / "a.ts", corpus.pictures(12), container="mpegts")
    large = corpus.write(tmp_path / "b.ts", corpus.pictures(12, 192, 256), container="mpegts")
    path = tmp_path / "both.ts"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    shapes = {frame.shape for frame in iter_frames(path, size=(96, 128))}
    assert shapes == {(96, 128, 3)}
    assert {frame.shape for frame in iter_frames(path)} == {(96, 128, 3), (192, 256, 3)}
    with pytest.raises(VideoError, match="change size"):
        read_clip(path, count=24)
