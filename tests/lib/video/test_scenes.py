"""Scene cuts: in a real film whose cuts were found by eye, and in changes made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.lib.video.container import VideoError
from components.lib.video.encode import write_mp4
from components.lib.video.isolated import DecodingPool
from components.lib.video.scenes import changes, find_scenes, scenes_between
from tests.lib.video import corpus

SCENES_OF_BIKES = [(0, 30), (30, 46), (76, 61), (137, 50), (187, 63)]


def test_the_cuts_of_a_real_film_are_found(clips: dict[str, Path]) -> None:
    with DecodingPool(1) as pool:
        found = {
            name: pool.scenes(clips[name], threshold=15, min_frames=9, timeout_s=300)
            for name in ("bikes", "bigbuckbunny", "carphone")
        }
    assert found["bikes"] == SCENES_OF_BIKES
    assert found["bigbuckbunny"] == [(0, 132)]
    assert found["carphone"] == [(0, 120)]


def test_a_fast_pan_is_one_scene_and_a_cut_within_it_two(tmp_path: Path) -> None:
    """The pan changes by more than the threshold in every frame."""
    dice = np.random.default_rng(0)
    scenery = [dice.integers(0, 255, (8, 64, 3), dtype=np.uint8) for _ in range(2)]
    pan = [
        np.roll(picture, 3 * number, axis=1).repeat(12, 0).repeat(8, 1)[:96, :512]
        for picture in scenery
        for number in range(20)
    ]
    write_mp4(tmp_path / "one.mp4", iter(pan[:20]), 25)
    assert min(changes(iter(pan[:20]))[1:]) > 15
    assert find_scenes(tmp_path / "one.mp4", threshold=15, min_frames=5) == [(0, 20)]
    dark = [frame // 8 for frame in pan[20:]]
    write_mp4(tmp_path / "two.mp4", iter([*dark, *(255 - frame // 8 for frame in dark)]), 25)
    assert find_scenes(tmp_path / "two.mp4", threshold=15, min_frames=5) == [(0, 20), (20, 20)]


def test_short_scenes_stay_with_their_neighbours() -> None:
    change = [0.0] + [1.0] * 9 + [80.0] + [1.0] * 2 + [80.0] + [1.0] * 9 + [80.0, 1.0]
    assert scenes_between(change, 15, 1) == [(0, 10), (10, 3), (13, 10), (23, 2)]
    assert scenes_between(change, 15, 5) == [(0, 10), (10, 15)]
    assert scenes_between(change, 90, 1) == [(0, 25)]


@given(st.lists(st.floats(0, 255), min_size=1, max_size=60), st.floats(1, 200), st.integers(1, 20))
def test_scenes_are_the_whole_video_in_order(
    change: list[float], threshold: float, shortest: int
) -> None:
    found = scenes_between(change, threshold, shortest)
    assert [start for start, _ in found] == [
        sum(n for _, n in found[:i]) for i in range(len(found))
    ]
    assert sum(count for _, count in found) == len(change)
    assert len(found) == 1 or min(count for _, count in found) >= shortest


def test_a_damaged_video_is_refused_with_its_reason(tmp_path: Path) -> None:
    path = corpus.damaged_middle(tmp_path / "bad.mp4")
    with DecodingPool(1) as pool, pytest.raises(VideoError, match=r"bad\.mp4"):
        pool.scenes(path, threshold=15, min_frames=9, timeout_s=300)
