"""Which family of models an evaluation is about, by the kind of its data set."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from components.evaluation.family import Family
from components.lib.contract import Progress
from components.lib.cosmos.families import trained_families
from components.lib.manifest import Manifest
from components.lib.store import ObjectStore

if TYPE_CHECKING:
    from components.evaluation.config import EvaluationConfig


def open_family(
    config: EvaluationConfig,
    inputs: Mapping[str, Manifest],
    store: ObjectStore,
    progress: Progress,
    scratch: Path,
) -> Family:
    """The family that is trained on this kind of data set; `EvaluationConfig` admits no other."""
    import torch

    auto = "cuda" if torch.cuda.is_available() else "cpu"
    device = auto if config.device == "auto" else config.device
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    kind = inputs["data"].kind
    record = next(family for family in trained_families() if family.data_kind == kind)
    module = importlib.import_module(f"components.evaluation.{record.training}_family")
    family: Family = module.EVALUATION(config, inputs, store, progress, scratch, device, dtype)
    return family
