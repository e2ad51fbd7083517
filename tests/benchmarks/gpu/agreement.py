"""Whether ranks compute what one CPU process computes in fp32: loss and gradient norm, four steps.

A network with heads for eight ranks starts from the same weights everywhere. Each layout that is
timed first trains it as it trains the large one (bf16, compiled, the same attention and
collectives) on the same global batch; the reference does so on the CPU, one sample after another.
The steps are large enough for moments that got lost or mixed up on their way to the host and back
to show in the loss (1e-2 when they come back as zeros).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from components.lib.cosmos.dit.network import DIT_PRESETS, DiT
from components.lib.cosmos.model_folder import save_model_folder
from components.lib.train.parallel.layout import ParallelLayout
from components.lib.train.settings.config import DiffusionTrainingConfig
from tests.benchmarks.gpu.random_dit import Shape, build

GEOMETRY = DIT_PRESETS["tiny"].model_copy(
    update={"layers": 2, "hidden": 512, "heads": 8, "ffn": 1024}
)
LATENT: Shape = (16, 4, 16, 16)
STEPS = 4
LR = 1e-3
BATCH = 8
#: Largest relative differences of loss and gradient norm: four times what bf16 costs on a CPU.
TOLERANCE = (5e-3, 2e-2)


def write_model(folder: Path) -> None:
    """The starting weights, none of them zero: a zero would hide a missing gradient."""
    model = DiT(GEOMETRY, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    save_model_folder(folder, "dit", "agreement", GEOMETRY, model.state_dict())


def first_steps(
    strategy: dict[str, Any],
    trainer: dict[str, Any],
    layout: ParallelLayout,
    folder: Path,
) -> list[tuple[float, float]]:
    """(loss, gradient norm) of the first steps with these trainer settings."""
    config = DiffusionTrainingConfig.model_validate(
        {
            "data": {"global_batch_size": BATCH},
            "optim": {"config": {"lr": LR}},
            "trainer": {"max_steps": 1000, "strategy": strategy, **trainer},
        }
    )
    engine = build(config, GEOMETRY, layout, LATENT, folder)
    engine.start_data()
    steps = [engine.train_step() for _ in range(STEPS)]
    engine.stop_data()
    return [(step["loss"], step["grad_norm"]) for step in steps]


def compare(
    found: Sequence[Sequence[float]], wanted: Sequence[Sequence[float]]
) -> tuple[bool, str]:
    """Whether the differences are within what bf16 is allowed, and the sentence that says so."""
    pairs = list(zip(found, wanted, strict=True))
    loss, norm = (max(abs(a[part] / b[part] - 1) for a, b in pairs) for part in (0, 1))
    same = loss <= TOLERANCE[0] and norm <= TOLERANCE[1]
    word = "agrees" if same else "DISAGREES"
    return same, f"{word} with the CPU in fp32: loss {loss:.1e}, gradient norm {norm:.1e}"
