"""Intervals and the paired test against scipy, and what is paired with what."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from components.lib.report.scores import ClipScore, by_drive, by_video
from components.lib.report.stats import (
    compare,
    compare_values,
    interval,
    t_distribution,
    t_quantile,
)


def clip(video: Any, value: Any, clip_name: Any = "0", drive: Any = "") -> Any:
    return ClipScore(
        video=video, sha256=video, drive=drive, clip=f"{video}/{clip_name}", values={"m": value}
    )


@given(t=st.floats(-40, 40, allow_nan=False), freedom=st.one_of(st.integers(1, 400), st.just(1e5)))
def test_student_distribution_equals_scipy(t: Any, freedom: Any) -> None:
    assert t_distribution(t, freedom) == pytest.approx(scipy_stats.t.cdf(t, freedom), abs=1e-10)


@pytest.mark.parametrize("freedom", [1, 2, 5, 23, 1000])
@pytest.mark.parametrize("probability", [0.025, 0.2, 0.5, 0.9, 0.975, 0.999])
def test_student_quantile_equals_scipy(freedom: Any, probability: Any) -> None:
    wanted = scipy_stats.t.ppf(probability, freedom)
    assert t_quantile(probability, freedom) == pytest.approx(wanted, rel=1e-8, abs=1e-12)


def test_paired_test_equals_scipy() -> None:
    rng = np.random.default_rng(0)
    old, new = rng.lognormal(0, 0.3, 15), rng.lognormal(-0.1, 0.3, 15)
    names = [str(i) for i in range(15)]
    found = compare_values(
        dict(zip(names, old, strict=True)), dict(zip(names, new, strict=True)), "loss", "lower"
    )
    assert found is not None
    test = scipy_stats.ttest_rel(np.log(old), np.log(new), alternative="greater")
    assert found.p_value == pytest.approx(test.pvalue, rel=1e-8)
    bounds = scipy_stats.ttest_rel(np.log(old), np.log(new)).confidence_interval(0.95)
    assert [found.low, found.high] == pytest.approx([bounds.low, bounds.high])


def test_clips_of_one_video_are_averaged_before_they_are_counted() -> None:
    """Ten clips of one video are one observation, or the interval would be far too narrow."""
    scores = [clip("a", 1.0 + i / 10, str(i)) for i in range(10)]
    scores += [clip("b", 5.0), clip("c", 9.0)]
    found = interval(scores, "m")
    assert found.units == 3 and found.mean == pytest.approx(np.mean([1.45, 5, 9]))
    assert found.high - found.mean == pytest.approx(
        scipy_stats.t.ppf(0.975, 2) * np.std([1.45, 5, 9], ddof=1) / math.sqrt(3)
    )


def test_few_videos_fall_back_to_clips_and_say_so() -> None:
    old = [clip("a", 2.0, str(i)) for i in range(5)]
    new = [clip("a", 1.0 + i / 100, str(i)) for i in range(5)]
    found = compare(old, new, "m", "lower")
    assert found is not None and (found.unit, found.units) == ("clips", 5)
    assert "over 5 clips" in found.text


def test_only_what_both_models_measured_is_compared() -> None:
    old = [clip(name, 2.0) for name in "abcd"]
    new = [clip(name, 1.0) for name in "bcdx"]
    found = compare(old, new, "m", "lower")
    assert found is not None and found.units == 3
    assert compare(old, [clip("z", 1.0)], "m", "lower") is None


def test_higher_is_better_for_psnr() -> None:
    found = compare_values({"a": 20.0, "b": 22.0}, {"a": 23.0, "b": 24.0}, "psnr", "higher")
    assert (
        found is not None and found.scale == "absolute" and found.improvement == pytest.approx(2.5)
    )
    assert found.text.startswith("+2.5 dB")


def test_drives_group_videos_and_lone_videos_stand_for_themselves() -> None:
    scores = [clip("a", 1.0, drive="x"), clip("b", 3.0, drive="x"), clip("c", 7.0)]
    assert by_drive(scores, "m") == {"x": 2.0, "c": 7.0}
    assert by_video(scores, "m") == {"a": 1.0, "b": 3.0, "c": 7.0}
