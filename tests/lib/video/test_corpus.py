"""Awkward files, one test each: read as what they show, or refused with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from components.lib.video.container import VideoError
from components.lib.video.frames import iter_clips, iter_frames, read_clip
from components.lib.video.index import build_index
from components.lib.video.probe import VideoProbe, probe
from tests.lib.video import corpus

EXPECTED: dict[str, dict[str, object]] = {
    "plain": {"frames": 40, "fps": 25, "duration": 1.6},
    "grey": {"pixel_format": "gray", "frames": 12},
    "rgba": {"pixel_format": "rgba", "frames": 12},
    "variable_rate": {"frames": 12, "variable_rate": True},
    "rotated_90": {"rotation": 90, "width": 128, "height": 96},
    "rotated_180": {"rotation": 180, "width": 128, "height": 96},
    "rotated_270": {"rotation": 270, "width": 128, "height": 96},
    "odd_size": {"width": 131, "height": 97},
    "ten_bit": {"pixel_format": "yuv420p10le", "codec": "hevc"},
    "interlaced": {"interlaced": True, "frames": 24},
    "edit_list": {"frames": 25, "duration": 1.0},
    "wrong_extension": {"container": "matroska,webm", "frames": 12},
    "one_frame": {"frames": 1},
    "frames_120": {"frames": 120, "duration": 4.8},
    "wide_pixels": {"pixel_aspect": 2.0},
    "no_time_stamps": {"frames": 30, "container": "avi"},
    "transport_stream": {"frames": 40, "container": "mpegts"},
    "open_gop": {"frames": 60},
}
FIRST_NUMBER = {"edit_list": 15}

REASONS = {
    "truncated": "cut off",
    "truncated_faststart": "cut off: ",
    "zero_bytes": "empty",
    "text": "not a readable video",
    "playlist": "not a readable video",
    "audio_only": "no video stream (only audio)",
    "zero_frames": "no frames",
}


@pytest.mark.parametrize("name", corpus.USABLE)
def test_usable_file_shows_every_frame_upright_and_in_order(name: str, tmp_path: Path) -> None:
    path = corpus.USABLE[name](tmp_path / f"{name}.mp4")
    found = probe(path, check="all")
    for field, value in EXPECTED[name].items():
        assert getattr(found, field) == value, field
    frames = list(iter_frames(path))
    first = FIRST_NUMBER.get(name, 0)
    assert [corpus.number_of(frame) for frame in frames] == list(range(first, first + found.frames))
    assert {frame.shape for frame in frames} == {(found.height, found.width, 3)}
    _check_picture(frames[0], corpus.picture(first, found.height, found.width), found)


@pytest.mark.parametrize("name", corpus.USABLE)
def test_clips_anywhere_are_the_frames_of_the_whole(name: str, tmp_path: Path) -> None:
    path = corpus.USABLE[name](tmp_path / f"{name}.mp4")
    whole = np.stack(list(iter_frames(path)))
    index = build_index(path)
    for start in range(0, len(whole), 5):
        clip = read_clip(path, start=start, count=1, index=index)
        assert np.array_equal(clip, whole[start : start + 1])
    count = min(4, len(whole))
    starts = [len(whole) - count, 0, (len(whole) - count) // 2]
    clips = dict(iter_clips(path, starts, count))
    assert all(np.array_equal(clips[start], whole[start : start + count]) for start in starts)


@pytest.mark.parametrize("name", corpus.UNUSABLE)
def test_unusable_file_is_refused_with_its_name_and_a_reason(name: str, tmp_path: Path) -> None:
    path = corpus.UNUSABLE[name](tmp_path / f"{name}.mp4")
    with pytest.raises(VideoError) as caught:
        probe(path)
    assert REASONS[name] in caught.value.reason
    assert str(path) in str(caught.value)
    with pytest.raises(VideoError):
        list(iter_frames(path, start=0, index=build_index(path)))


def test_damage_in_the_middle_is_found_by_a_full_check_only(tmp_path: Path) -> None:
    path = corpus.damaged_middle(tmp_path / "damaged.mp4")
    assert probe(path, check="ends").frames == 40
    with pytest.raises(VideoError):
        probe(path, check="all")
    with pytest.raises(VideoError):
        list(iter_frames(path))
    assert corpus.number_of(read_clip(path, start=2, count=1)[0]) == 2


def test_cut_off_anywhere_is_refused_or_whole(tmp_path: Path) -> None:
    path = tmp_path / "cut.mp4"
    corpus.write(path, corpus.pictures(12), gop=4, muxer={"movflags": "faststart"})
    data = path.read_bytes()
    for keep in range(0, len(data), 211):
        path.write_bytes(data[:keep])
        with pytest.raises(VideoError):
            probe(path)


def test_a_name_is_only_a_name(tmp_path: Path) -> None:
    whole = corpus.plain(tmp_path / "plain.mp4")
    for name in ("concat:a|b.mp4", "a b'\"ü%d.mp4", "file:x.mp4", "-i.mp4", "pipe:0.mp4"):
        path = tmp_path / name
        path.write_bytes(whole.read_bytes())
        assert probe(path).frames == 40


def _check_picture(got: corpus.RGB, wanted: corpus.RGB, found: VideoProbe) -> None:
    """The upper part agrees: the mark is top left and the ramp grows to the right."""
    upper = found.height // 2
    error = np.abs(got[:upper].astype(int) - wanted[:upper].astype(int)).mean()
    limit = 12 if found.pixel_format == "gray" else 5
    red = got[4 : found.height // 4 - 4, 4 : found.width // 4 - 4].mean(axis=(0, 1))
    assert error < limit
    assert found.pixel_format == "gray" or red[0] > 170 > 80 > red[1]


def test_a_header_that_claims_a_giant_picture_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = corpus.plain(tmp_path / "plain.mp4")
    monkeypatch.setattr("components.lib.video.container.MAX_PIXELS", 128 * 96 - 1)
    with pytest.raises(VideoError, match="claims 128 x 96 pixels"):
        probe(path)
