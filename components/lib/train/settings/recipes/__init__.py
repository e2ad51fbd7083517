"""The recipes, by the names the guides give to `--factory`.

Hyperparameters are the reference's: lr 1e-6 constant, no weight decay, clip 1.0, on eight GPUs
tensor parallel 8 with sequence parallel for the DiTs (on fewer: see `auto_layout`); AdamW (0.5,
0.999), lr 1e-4, weight decay 0.01, no clipping for the tokenizers. What differs on purpose: fp32
master weights always; seeded random clips instead of the top-left corner of the first frames;
compiled blocks that recompute only what memory asks for, instead of everything. The successor's
warm-up, decay, EMA and augmentation are a few overrides away. The tiny recipes learn something
visible on two CPU cores in a minute.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from components.lib.contract import UserError
from components.lib.cosmos.families import trained_families
from components.lib.settings import nearest
from components.lib.train.settings.config import TrainConfig

Recipe = Callable[[], TrainConfig]


def recipes() -> dict[str, Recipe]:
    """Every recipe by its name: the module of each family that is trained lists its own."""
    modules = (
        importlib.import_module(f"{__name__}.{family.training}") for family in trained_families()
    )
    return {recipe.__name__: recipe for module in modules for recipe in module.RECIPES}


def recipe(name: str) -> TrainConfig:
    """The config of a recipe. Raises UserError naming the nearest one when there is none."""
    known = recipes()
    if name not in known:
        close = nearest(name, known, cutoff=0.6)
        hint = f"Did you mean '{close}'?" if close else f"Recipes: {', '.join(known)}."
        raise UserError(f"There is no recipe '{name}'. {hint}")
    return known[name]()
