"""How far training is, from rank 0 to its launcher."""

from __future__ import annotations

import pytest

from components.lib.training_progress import MARK, TrainingProgress, parse_progress


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        (
            TrainingProgress(step=3, max_steps=10, loss=0.5, eta_seconds=70),
            "step 3/10, loss 0.5, 70 s left",
        ),
        (TrainingProgress(step=3), "step 3"),
        (TrainingProgress(step=1200, max_steps=2000, loss=1.23456), "step 1200/2000, loss 1.235"),
        (TrainingProgress(step=1, loss=float("nan")), "step 1"),
    ],
)
def test_a_record_comes_back_and_can_be_said(progress: TrainingProgress, words: str) -> None:
    read = parse_progress(f"12:00:00 {progress.line()}")
    assert read is not None
    assert read.words() == progress.words() == words
    assert (read.step, read.max_steps) == (progress.step, progress.max_steps)


@pytest.mark.parametrize(
    "line",
    [
        "step 3/10, loss 0.5, 70 s left",  # words are for people
        "validation after step 3: loss 0.5",
        '{"step": 3}',
        MARK,
        MARK + '{"step": 3, "los',
        MARK + '{"loss": 1}',
    ],
)
def test_other_lines_are_no_progress(line: str) -> None:
    assert parse_progress(line) is None
