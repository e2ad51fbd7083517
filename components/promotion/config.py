"""Settings of the stage: the model's name, the ledger, and the gate's rules as fields."""

from __future__ import annotations

from pydantic import Field, model_validator

from components.lib.contract import StageConfig, manifest_input, operational
from components.lib.stage import StageSpec
from components.promotion.gate import GateRules

SPEC = StageSpec(name="promotion", version="1", kind="promotion")


class PromotionConfig(StageConfig, GateRules):
    """Settings of the stage; the gate's rules are fields of their own."""

    training: str = manifest_input("Manifest of the training run.")
    evaluation: str = manifest_input("Manifest of its evaluation.")
    model_name: str = Field(description="Name under which versions are registered.")
    models_root: str = operational("", "Where models are kept. Empty: <storage_root>/models.")
    videos: str = manifest_input("Videos that the model was trained on.", default="")
    ledger: str = Field(
        default="", description="Name of the ledger to enter the videos in; empty: none."
    )
    enter_refused: bool = Field(
        default=False, description="Enter the videos of a refused model, too."
    )
    force: bool = Field(
        default=False,
        description="Promote whatever the gate says. Needs a reason, which is recorded.",
    )
    reason: str = Field(default="", description="Why, for the history.")

    @model_validator(mode="after")
    def _reasoned(self) -> PromotionConfig:
        if self.force and not self.reason.strip():
            raise ValueError("a promotion by force needs a reason")
        if self.ledger and not self.videos:
            raise ValueError("a ledger needs the videos to enter in it (their manifest)")
        return self


CONFIG = PromotionConfig
