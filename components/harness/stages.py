"""The stages there are: every folder of ``components`` that has a ``config.py``.

There is no list to keep. A stage's ``config.py`` defines ``SPEC`` (name, version, kind of output),
``CONFIG`` (its settings) and ``RESOURCES`` (what it asks of a cluster), its ``stage.py`` defines
``run``. Names come from the folders alone; a module is imported when its stage is asked for.

People see stages in the order of a run. It follows from what they read and write: a stage comes
once every one of its inputs can be had from an earlier stage, in one of the kinds that the input
takes; stages that come at the same time stand in the order of the alphabet. So a new stage takes
its place by itself. The price is that the order needs the configs of all stages, some hundredths
of a second; where only names are wanted, `stage_names` gives them without.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import components
from components.lib.contract import Progress, StageConfig, UserError
from components.lib.resources import Resources
from components.lib.settings import nearest
from components.lib.stage import StageResult, StageSpec
from components.lib.store import ObjectStore

Run = Callable[[StageConfig, ObjectStore, Progress], StageResult]


class Stage(NamedTuple):
    """What a stage's config.py says."""

    spec: StageSpec
    config: type[StageConfig]
    resources: Resources


def stage_names() -> tuple[str, ...]:
    """The names of all stages, in the order of the alphabet. Imports none of them."""
    roots = [Path(root) for root in components.__path__]
    return tuple(sorted(path.parent.name for root in roots for path in root.glob("*/config.py")))


def stage_named(name: str) -> Stage:
    """What the stage's config.py says. Raises UserError naming the nearest stage."""
    if name not in stage_names():
        raise UserError(f"There is no stage '{name}'.{meant(name, stages_in_order())}")
    module = importlib.import_module(f"components.{name}.config")
    return Stage(spec=module.SPEC, config=module.CONFIG, resources=module.RESOURCES)


def stage_config(name: str) -> type[StageConfig]:
    """The config class of a stage. Raises UserError naming the nearest stage."""
    return stage_named(name).config


def stage_run(name: str) -> Run:
    """The function that does a stage's work. Its libraries are imported only here."""
    run: Run = importlib.import_module(f"components.{name}.stage").run
    return run


def stages_in_order() -> tuple[str, ...]:
    """The names of all stages in the order of a run (see the module docstring)."""
    waiting = {name: stage_named(name) for name in stage_names()}
    order: list[str] = []
    written: set[str] = set()
    while waiting:
        ready = [name for name, stage in waiting.items() if _can_start(stage.config, written)]
        # what reads a kind that no stage writes comes last
        for name in ready or list(waiting):
            order.append(name)
            written.add(waiting.pop(name).spec.kind)
    return tuple(order)


def _can_start(config: type[StageConfig], written: set[str]) -> bool:
    kinds = config.input_kinds().values()
    return all(written.intersection(accepted) for accepted in kinds if accepted)


def meant(word: str, known: Iterable[str]) -> str:
    """The end of an error: the known word that was perhaps meant, or all of them."""
    words = list(known)
    close = nearest(word, words)
    return f" Did you mean '{close}'?" if close else f" There are: {', '.join(words)}."
