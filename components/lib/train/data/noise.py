"""Random draws of the diffusion loss, a pure function of (seed, running sample number).

The reference seeds a generator per data rank and trusts tensor-parallel ranks to stay in lock-step.
Here each sample has a generator of its own, so its sigma, noise and text dropout are the same in
every layout, after every resume, and on every device (they are drawn on the host).
"""

from __future__ import annotations

import torch

from components.lib.cosmos.diffusion.edm import NoiseConfig, draw_sigma
from components.lib.train.data.sampler import seed_of
from components.lib.train.settings.config import DiffusionModel

# The held-out noise levels: medians of eight equal parts of the training distribution.
GRID = 8


class SampleNoise:
    """What the loss of one sample needs beside the sample."""

    def __init__(self, number: int, seed: int, model: DiffusionModel, shape: torch.Size) -> None:
        generator = torch.Generator().manual_seed(seed_of("draws", seed, number))
        noise = NoiseConfig(mean=model.p_mean, std=model.p_std)
        self.sigma = draw_sigma(1, generator, noise)[0]
        self.keep_text = bool(torch.rand((), generator=generator) >= model.text_dropout)
        self.condition_frames = int(
            torch.randint(1, model.max_condition_frames + 1, (), generator=generator)
        )
        self.noise = torch.randn(shape, generator=generator)


def validation_noise(sample: int, level: int, seed: int, shape: torch.Size) -> torch.Tensor:
    """The fixed noise of one held-out sample at one level of the grid."""
    generator = torch.Generator().manual_seed(seed_of("validation", seed, sample, level))
    return torch.randn(shape, generator=generator)
