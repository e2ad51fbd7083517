"""Which family of models an evaluation is about, by the kind of its data set."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from components.evaluation.family import Family
from components.lib.contract import Progress, UserError
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
    """The family that fits the data set. Raises UserError for other kinds of manifests."""
    import torch

    auto = "cuda" if torch.cuda.is_available() else "cpu"
    device = auto if config.device == "auto" else config.device
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    kind = inputs["data"].kind
    for record in trained_families():
        if record.data_kind == kind:
            module = importlib.import_module(f"components.evaluation.{record.training}_family")
            family: Family = module.EVALUATION(
                config, inputs, store, progress, scratch, device, dtype
            )
            return family
    raise UserError(
        f"data is a '{kind}' manifest ({inputs['data'].uri}); evaluation needs the data set "
        "that the model was trained on."
    )
