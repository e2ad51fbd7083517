"""Written MP4s: the pictures come back, the same bytes for the same frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from components.lib.video.container import VideoError
from components.lib.video.cut import cut_mp4
from components.lib.video.encode import mp4_bytes, write_mp4
from components.lib.video.frames import iter_frames, read_clip
from components.lib.video.probe import probe
from tests.lib.video import corpus


@pytest.mark.parametrize("size", [(96, 128), (97, 131), (720, 128)])
def test_what_is_written_is_read_back(size: tuple[int, int], tmp_path: Path) -> None:
    frames = corpus.pictures(10, *size)
    path = tmp_path / "out.mp4"
    assert write_mp4(path, frames, 29.97, crf=1) == 10
    found = probe(path, check="all")
    assert (found.height, found.width, found.frames) == (*size, 10)
    assert found.fps == pytest.approx(30000 / 1001, rel=1e-4)
    back = np.stack(list(iter_frames(path))).astype(int)
    inner = np.abs(back - np.stack(frames).astype(int))[:, 2:-2, 2:-2]
    assert np.median(inner) <= 2
    assert [corpus.number_of(frame) for frame in back.astype(np.uint8)] == list(range(10))


def test_equal_frames_give_equal_bytes() -> None:
    assert mp4_bytes(corpus.pictures(8), 25) == mp4_bytes(iter(corpus.pictures(8)), 25.0)


def test_nothing_is_left_when_writing_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no frames"):
        write_mp4(tmp_path / "empty.mp4", [], 25)
    assert list(tmp_path.iterdir()) == []


def test_a_clip_between_keyframes_is_copied_exactly(tmp_path: Path) -> None:
    source = corpus.plain(tmp_path / "source.mp4")  # keyframes at 0, 10, 20, 30
    target = tmp_path / "clip.mp4"
    assert cut_mp4(source, target, start=10, count=20) == "remux"
    assert np.array_equal(
        np.stack(list(iter_frames(target))), read_clip(source, start=10, count=20)
    )


@pytest.mark.parametrize("name", ["plain", "open_gop", "edit_list", "rotated_90", "interlaced"])
def test_a_clip_anywhere_holds_its_frames(name: str, tmp_path: Path) -> None:
    source = corpus.USABLE[name](tmp_path / "source.mp4")
    first = 15 if name == "edit_list" else 0
    target = tmp_path / "clip.mp4"
    assert cut_mp4(source, target, start=3, count=7) == "encode"
    numbers = [corpus.number_of(frame) for frame in iter_frames(target)]
    assert numbers == list(range(first + 3, first + 10))


@pytest.mark.parametrize("name", ["wrong_extension", "transport_stream", "rotated_90"])
def test_a_whole_video_becomes_an_mp4_without_encoding(name: str, tmp_path: Path) -> None:
    source = corpus.USABLE[name](tmp_path / "source.mp4")
    target = tmp_path / "whole.mp4"
    assert cut_mp4(source, target) == "remux"
    assert "mp4" in probe(target).container
    assert np.array_equal(np.stack(list(iter_frames(target))), np.stack(list(iter_frames(source))))


def test_a_damaged_video_is_not_cut(tmp_path: Path) -> None:
    source = corpus.damaged_middle(tmp_path / "damaged.mp4")
    with pytest.raises(VideoError):
        cut_mp4(source, tmp_path / "clip.mp4", start=1, count=37)
    assert not list(tmp_path.glob("*clip*"))
