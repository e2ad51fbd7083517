"""How much of the ranks' time is work when clips differ in size, and each step takes as long as the
rank with the largest: samples of one size in runs against sizes mixed freely.

Computed, not timed: from the order that training takes and the FLOPs of each clip in 7B.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from components.lib.cosmos.dit.config import DIT_PRESETS
from components.lib.cosmos.flops import dit_forward_flops
from components.lib.cosmos.tokenizer.config import TOKENIZER_PRESETS
from components.lib.train.data.sampler import Sampler
from components.lib.train.settings.config import DiffusionData

Row = tuple[str, float, float, float]
CONFIG = DIT_PRESETS["7B"]
#: frames, height, width: equally frequent
CLIPS = [(33, 480, 832), (121, 480, 832), (121, 704, 1280)]
SHARDS, SAMPLES = 60, 100


def rows() -> Iterator[Row]:
    """(ranks, useful part with runs, mixed, ratio)."""
    for ranks in (2, 8, 32):
        ours, mixed = (useful(ranks, run) for run in (DiffusionData().same_size, 0))
        yield (
            f"clips of three sizes: useful part of the time of {ranks} ranks",
            ours,
            mixed,
            ours / mixed,
        )


def useful(ranks: int, run: int) -> float:
    """Mean work of a rank over that of the busiest, summed over the steps of an epoch."""
    work = []
    for frames, height, width in CLIPS:
        latent = TOKENIZER_PRESETS["CV8x8x8"].latent_shape(frames, height, width)
        tokens = math.prod(CONFIG.grid(*latent[1:]))
        work.append(dit_forward_flops(CONFIG, tokens))
    sizes = [shard % len(CLIPS) for shard in range(SHARDS)]
    order = Sampler([SAMPLES] * SHARDS, seed=1, window=8, shuffle=True, sizes=sizes, run=run)
    steps = order.total // ranks
    dealt = np.array([work[sizes[order.at(n)[0]]] for n in range(steps * ranks)], dtype=float)
    dealt = dealt.reshape(steps, ranks)
    return float(dealt.mean(axis=1).sum() / dealt.max(axis=1).sum())
