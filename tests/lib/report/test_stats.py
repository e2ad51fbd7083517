"""Student's t against closed forms and printed tables, and what is paired with what.

scipy computes the distribution, so it is no oracle here: the tables and the example are Student's.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.lib.report.scores import ClipScore, by_drive, by_video
from components.lib.report.stats import compare, compare_values, interval, t_quantile

# Printed tables of Student's t: degrees of freedom -> quantiles at `PROBABILITIES`.
PROBABILITIES = (0.90, 0.95, 0.975, 0.99, 0.995, 0.999)
TABLE = {
    1: (3.078, 6.314, 12.706, 31.821, 63.657, 318.309),
    2: (1.886, 2.920, 4.303, 6.965, 9.925, 22.327),
    3: (1.638, 2.353, 3.182, 4.541, 5.841, 10.215),
    5: (1.476, 2.015, 2.571, 3.365, 4.032, 5.893),
    10: (1.372, 1.812, 2.228, 2.764, 3.169, 4.144),
    30: (1.310, 1.697, 2.042, 2.457, 2.750, 3.385),
    120: (1.289, 1.658, 1.980, 2.358, 2.617, 3.160),
}
# "Student" (1908), The probable error of a mean: hours of sleep gained with each of two drugs.
SLEEP_FIRST = (0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0)
SLEEP_SECOND = (1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4)


def clip(video: Any, value: Any, clip_name: Any = "0", drive: Any = "") -> Any:
    return ClipScore(
        video=video, sha256=video, drive=drive, clip=f"{video}/{clip_name}", values={"m": value}
    )


@pytest.mark.parametrize("freedom", TABLE)
def test_quantiles_equal_the_printed_table(freedom: int) -> None:
    found = [t_quantile(probability, freedom) for probability in PROBABILITIES]
    assert found == pytest.approx(TABLE[freedom], abs=5.1e-4)


@given(probability=st.floats(0.001, 0.999))
def test_quantiles_equal_the_closed_forms(probability: float) -> None:
    """One degree of freedom is Cauchy's distribution; two have an algebraic one; many, Gauss's."""
    cauchy = math.tan(math.pi * (probability - 0.5))
    assert t_quantile(probability, 1) == pytest.approx(cauchy, rel=1e-9, abs=1e-12)
    excess = 2 * probability - 1
    two = excess * math.sqrt(2 / (1 - excess**2))
    assert t_quantile(probability, 2) == pytest.approx(two, rel=1e-9, abs=1e-12)
    normal = NormalDist().inv_cdf(probability)
    assert t_quantile(probability, 1e7) == pytest.approx(normal, rel=1e-5, abs=1e-9)


@given(gains=st.lists(st.floats(-3, 3).map(lambda v: round(v, 3)), min_size=3, max_size=3))
def test_chance_of_three_gains_equals_its_closed_form(gains: list[float]) -> None:
    """P(T > t) of two degrees of freedom is (1 - t / sqrt(2 + t^2)) / 2."""
    names = ("a", "b", "c")
    before = dict.fromkeys(names, 10.0)
    after = {name: 10 + gain for name, gain in zip(names, gains, strict=True)}
    found = compare_values(before, after, "psnr", "higher")
    assert found is not None
    if found.error > 1e-9:
        t = found.improvement / found.error
        assert found.p_value == pytest.approx((1 - t / math.sqrt(2 + t * t)) / 2, abs=1e-9)


def test_a_tiny_chance_is_not_rounded_to_nothing() -> None:
    """Taken as 1 - P(T <= t) it would be 0 or a multiple of 1e-16."""
    before = {str(number): 10.0 for number in range(30)}
    after = {name: 20 + int(name) / 1000 for name in before}
    found = compare_values(before, after, "psnr", "higher")
    assert found is not None and 0 < found.p_value < 1e-60


def test_paired_test_equals_the_example_of_student() -> None:
    names = [str(number) for number in range(len(SLEEP_FIRST))]
    found = compare_values(
        dict(zip(names, SLEEP_FIRST, strict=True)),
        dict(zip(names, SLEEP_SECOND, strict=True)),
        "hours", "higher",
    )  # fmt: skip
    assert found is not None and found.improvement == pytest.approx(1.58)
    assert found.improvement / found.error == pytest.approx(4.0621, abs=5e-5)
    assert found.p_value == pytest.approx(0.002833 / 2, abs=5e-7)
    assert [found.low, found.high] == pytest.approx([0.7001142, 2.4598858], abs=5e-7)


def test_clips_of_one_video_are_averaged_before_they_are_counted() -> None:
    """Ten clips of one video are one observation, or the interval would be far too narrow."""
    scores = [clip("a", 1.0 + i / 10, str(i)) for i in range(10)]
    scores += [clip("b", 5.0), clip("c", 9.0)]
    found = interval(scores, "m")
    assert found.units == 3 and found.mean == pytest.approx(np.mean([1.45, 5, 9]))
    # 4.302653: Student's t of two degrees of freedom, 97.5 %
    assert found.high - found.mean == pytest.approx(
        4.302653 * np.std([1.45, 5, 9], ddof=1) / math.sqrt(3), rel=1e-6
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
