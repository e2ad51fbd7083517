"""Which family of models an evaluation is about, by the kind of its data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from components.evaluation.diffusion_family import DiffusionFamily
from components.evaluation.family import Family
from components.evaluation.tokenizer_family import TokenizerFamily
from components.lib.contract import Progress, UserError
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
    kinds: dict[str, type[DiffusionFamily] | type[TokenizerFamily]] = {
        "latent-dataset": DiffusionFamily,
        "tokenizer-dataset": TokenizerFamily,
    }
    kind = inputs["data"].kind
    if kind not in kinds:
        raise UserError(
            f"data is a '{kind}' manifest ({inputs['data'].uri}); evaluation needs the data set "
            "that the model was trained on."
        )
    return kinds[kind](config, inputs, store, progress, scratch, device, dtype)
