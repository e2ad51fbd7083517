"""What the stage needs of a family of models: measure, show, and say how it went."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from markupsafe import Markup

from components.evaluation.held_out import HeldOut
from components.lib.contract import Progress
from components.lib.manifest import Manifest
from components.lib.report.page import Picture
from components.lib.report.scores import Better, ClipScore, Evaluation, ModelRole
from components.lib.store import ObjectStore

if TYPE_CHECKING:
    from components.evaluation.config import EvaluationConfig

COLUMNS = 5
COMPARED: tuple[ModelRole, ...] = ("base", "candidate")
SHORT: dict[str, str] = {
    "base": "before",
    "candidate": "after",
    "production": "in\nproduction",
}


class Family(Protocol):
    """What the stage needs of a family. ``measure`` is called once per model."""

    name: str
    metric: str
    better: Better

    def measure(
        self, role: ModelRole, folder: Path, sets: Mapping[str, HeldOut]
    ) -> dict[str, list[ClipScore]]:
        """Scores by set of the model in ``folder``."""

    def strips(self) -> list[tuple[str, Picture]]:
        """File name and picture, of what the models made."""

    def videos(self) -> list[tuple[str, Picture]]:
        """File name and MP4."""

    def scalars(self) -> dict[str, float]:
        """Further numbers for the UI, the same on every run."""

    def rates(self) -> dict[str, float]:
        """Speeds, different on every run."""

    def sections(self, evaluation: Evaluation) -> list[Markup]:
        """Parts of the report that only this family has."""

    def facts(self) -> dict[str, Any]:
        """What else the report should say of the models."""


class Setting:
    """What every family is made with."""

    def __init__(
        self,
        config: EvaluationConfig,
        inputs: Mapping[str, Manifest],
        store: ObjectStore,
        progress: Progress,
        scratch: Path,
        device: str,
        dtype: Any,
    ) -> None:
        self.config, self.inputs, self.store, self.progress = config, inputs, store, progress
        self.scratch, self.device, self.dtype = scratch, device, dtype
