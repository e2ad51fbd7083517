"""Runs a resolved config in this process and its peers."""

from __future__ import annotations

import logging
import warnings
from typing import Protocol

import torch

from components.lib.contract import UserError
from components.lib.cosmos.compiler import has_compiler
from components.lib.run_files import EXIT_RESUME
from components.lib.train.loggers import Sink
from components.lib.train.parallel.layout import ParallelLayout, start_processes, stop_processes
from components.lib.train.session import Preempted, Session
from components.lib.train.settings.auto_layout import describe_choices, resolve_layout
from components.lib.train.settings.config import TrainConfig
from components.lib.train.setup import build_engine, open_store


class Loop(Protocol):
    """Drives a session; ``sinks`` receive its metrics."""

    sinks: list[Sink]

    def run(self, session: Session) -> None:
        """Step until ``trainer.max_steps``."""

    def close(self) -> None:
        """Flush the loggers."""


log = logging.getLogger("cosmos.train")


def make_loop(config: TrainConfig, layout: ParallelLayout) -> Loop:
    """The loop that ``trainer.engine`` names. Lightning and NeMo are imported only if wanted."""
    if config.trainer.engine == "lightning":
        from components.lib.train.loop_lightning import LightningLoop

        return LightningLoop(config, layout)
    from components.lib.train.loop_plain import PlainLoop

    return PlainLoop(config, layout)


def train(config: TrainConfig) -> int:
    """Train and export. Returns the exit code: 0, or EXIT_RESUME after SIGTERM.

    Raises UserError, also when a GPU's memory does not suffice.
    """
    # FSDP2 warns that the DiT returns a view; nothing here changes an output in place.
    warnings.filterwarnings("ignore", message=".*returned a view tensor.*")
    config = resolve_layout(config)
    layout = start_processes(config.trainer, model_parallel=config.model_parallel)
    try:
        code = _train(config, layout)
    except torch.OutOfMemoryError as error:
        raise UserError(memory_advice(config, layout, str(error))) from error
    if not code:
        stop_processes()
    return code


def _train(config: TrainConfig, layout: ParallelLayout) -> int:
    if config.trainer.compile and not has_compiler(layout.device.type):
        raise UserError(
            "trainer.compile=true needs Python's headers and a C compiler (gcc, or what CC names; "
            "on CPUs g++ or CXX), which are not all here. Install them, take the project's image, "
            "or set trainer.compile=false."
        )
    store = open_store(config)
    loop = make_loop(config, layout)
    session = Session(config, build_engine(config, layout, store), store, loop.sinks)
    if layout.is_main:
        cuda = layout.device.type == "cuda"
        device = torch.cuda.get_device_name(layout.device) if cuda else "cpu"
        attention = session.engine.task.attention
        log.info("%s", describe_choices(config, layout.world, device, attention))
    try:
        session.start()
        loop.run(session)
        loop.close()
        session.finish()
    except Preempted as stop:
        log.warning("rank %d %s", layout.rank, stop)
        return EXIT_RESUME
    finally:
        session.engine.stop_data()
    return 0


def memory_advice(config: TrainConfig, layout: ParallelLayout, allocator: str) -> str:
    """What to change when memory has run out, the cheapest first. ``allocator``: its message."""
    asked = ". ".join(allocator.splitlines()[0].split(". ")[:2]).rstrip(".")
    return (
        f"Rank {layout.rank} ran out of GPU memory ({asked}). Start again with one of: "
        f"{'; '.join(config.memory_advice())}."
    )
