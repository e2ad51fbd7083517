"""How far a training run is: one line of JSON from rank 0 to the launcher that asked for it.

A launcher sets `PROGRESS_VARIABLE` for the ranks. Rank 0 then says each step as ``{"step": 3, …}``
behind a mark instead of in words; the launcher reads the record, shows the words in its own log and
keeps the record as the job's annotation. A run that nobody launched says the words itself.
"""

from __future__ import annotations

import math

from pydantic import ValidationError

from components.lib.contract import Frozen
from components.lib.environment import TRAINING_PROGRESS

PROGRESS_VARIABLE = TRAINING_PROGRESS
MARK = "cosmos-progress "


class TrainingProgress(Frozen):
    """Steps done of how many, the last loss, and the seconds that are left."""

    step: int
    max_steps: int | None = None
    loss: float | None = None
    eta_seconds: float | None = None

    def line(self) -> str:
        """The record for a launcher to read."""
        return MARK + self.model_dump_json(exclude_none=True)

    def words(self) -> str:
        """``step 3/10, loss 0.5, 70 s left``, as far as it is known."""
        words = f"step {self.step}" + (f"/{self.max_steps}" if self.max_steps else "")
        if self.loss is not None and math.isfinite(self.loss):
            words += f", loss {self.loss:.4g}"
        if self.eta_seconds is not None:
            words += f", {self.eta_seconds:.0f} s left"
        return words


def parse_progress(line: str) -> TrainingProgress | None:
    """The record of a line that `TrainingProgress.line` wrote; None for any other line."""
    _, mark, record = line.partition(MARK)
    if not mark:
        return None
    try:
        return TrainingProgress.model_validate_json(record)
    except ValidationError:  # cut off by a container that died while it wrote
        return None
