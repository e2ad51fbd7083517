"""Short form of the mutation fuzz; the full one is ``python -m tests.lib.video.fuzz --full``."""

from __future__ import annotations

from tests.lib.video import fuzz


def test_broken_files_never_crash_hang_or_escape() -> None:
    outcomes = fuzz.run(count=60, seed=1, workers=1)
    assert sum(outcomes.values()) == 60
    assert not [outcome for outcome in outcomes if outcome.startswith("lost")]
    assert outcomes["refused"] > 10
