"""Pauses that grow, up to a limit, said once."""

from __future__ import annotations

import pytest

from components.lib.system.patience import Patience


def test_pauses_grow_and_end_with_the_limit() -> None:
    pauses: list[float] = []
    patience = Patience(lambda _: None, pause_s=1.0, longest_s=4.0, sleep=pauses.append)
    tries = 0
    while patience.wait("away", limit_s=12.0):
        tries += 1
    assert pauses == pytest.approx([1, 2, 4, 4, 1], abs=0.05)
    assert tries == 5
    assert patience.waited == pytest.approx(12, abs=0.05)


def test_a_service_may_ask_for_more_time_but_not_beyond_the_limit() -> None:
    pauses: list[float] = []
    patience = Patience(lambda _: None, sleep=pauses.append)
    assert patience.wait("busy", limit_s=10, after_s=7)
    assert patience.wait("busy", limit_s=10, after_s=7)
    assert pauses == pytest.approx([7, 3], abs=0.05)


def test_a_problem_is_told_when_it_comes_and_when_it_changes() -> None:
    told: list[str] = []
    patience = Patience(told.append, sleep=lambda _: None)
    for problem in ("503", "503", "reset", "reset", "503"):
        assert patience.wait(problem, limit_s=100)
    assert told == ["503", "reset", "503"]


def test_no_patience_waits_for_nothing() -> None:
    told: list[str] = []
    assert not Patience(told.append).wait("503", limit_s=0)
    assert told == []
