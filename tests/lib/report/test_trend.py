"""Verdicts on curves whose behaviour is known because they were made that way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.lib.report.curves import Series
from components.lib.report.trend import read_trend, smooth


def series(values: Any) -> Any:
    return Series(
        name="loss", steps=tuple(range(1, len(values) + 1)), values=tuple(map(float, values))
    )


def curve(kind: Any, seed: Any, count: Any = 400, noise: Any = 0.2) -> Any:
    rng = np.random.default_rng(seed)
    at = np.arange(count)
    scatter = np.exp(rng.normal(0, noise, count))
    shape = {
        "flat": np.full(count, 0.8),
        "falling": 0.5 + np.exp(-at / (count / 5)),
        "slowly falling": 1.0 - 0.25 * at / count,
        "diverging": 0.5 + 3 * np.maximum(0, at / count - 0.6) ** 1.5 * 4,
    }[kind]
    return shape * scatter


def words(kind: Any, trials: Any = 100, **more: Any) -> Any:
    return [read_trend(series(curve(kind, seed, **more))).word for seed in range(trials)]


def test_flat_curves_are_hardly_ever_called_anything_else() -> None:
    assert words("flat").count("flat") >= 95


def test_correlated_noise_is_not_taken_for_a_trend() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(100):
        noise = np.zeros(400)
        for i in range(1, 400):
            noise[i] = 0.6 * noise[i - 1] + rng.normal(0, 0.1)
        found.append(read_trend(series(1 + noise)).word)
    assert found.count("flat") >= 90


@pytest.mark.parametrize("kind", ["falling", "slowly falling"])
def test_falling_curves_are_found(kind: Any) -> None:
    assert words(kind).count("falling") >= 98


def test_diverging_curves_are_found() -> None:
    assert words("diverging").count("diverging") >= 98


def test_not_finite_is_diverging_and_names_the_step() -> None:
    values = curve("falling", 0)
    values[200] = np.nan
    verdict = read_trend(series(values))
    assert verdict.word == "diverging" and "from step 201 on" in verdict.sentence


def test_spikes_are_found_and_named() -> None:
    values = curve("falling", 0, noise=0.05)
    values[[100, 250, 300]] *= 8
    verdict = read_trend(series(values))
    assert verdict.word == "spiking" and verdict.numbers["spikes"] == 3
    assert "at steps 101, 251, 301" in verdict.sentence


def test_short_curves_are_not_judged() -> None:
    assert read_trend(series([3, 2, 1])).word == "too short to tell"
    assert read_trend(series([])).word == "too short to tell"


def test_sentence_holds_the_numbers() -> None:
    verdict = read_trend(series(np.linspace(2, 1, 100)))
    assert verdict.numbers["first_tenth"] == pytest.approx(np.linspace(2, 1, 100)[:10].mean())
    assert verdict.numbers["ratio"] == pytest.approx(
        np.linspace(2, 1, 100)[-10:].mean() / np.linspace(2, 1, 100)[:10].mean()
    )
    assert "still falling" in verdict.sentence


def test_the_interval_covers_the_true_trend_nineteen_times_in_twenty() -> None:
    truth = 0.5 + np.exp(-np.arange(400) / 200)
    covered = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        found = smooth(truth + rng.normal(0, 0.1, 400))
        inside = (found.low <= truth) & (truth <= found.high)
        covered.append(inside[20:-20].mean())
    assert 0.9 < np.mean(covered) < 0.99


@settings(max_examples=60)
@given(st.lists(st.floats(-1e6, 1e6), min_size=0, max_size=60))
def test_any_curve_gets_a_verdict(values: Any) -> None:
    verdict = read_trend(series(values))
    assert verdict.sentence.lower().startswith(verdict.word)
