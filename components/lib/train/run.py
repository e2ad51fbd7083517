"""Runs a resolved config in this process and its peers."""

from __future__ import annotations

import logging
import warnings
from typing import Protocol

import torch

from components.lib.train import EXIT_RESUME
from components.lib.train.choices import describe_choices, resolve_layout
from components.lib.train.config import DiffusionConfig, TokenizerConfig
from components.lib.train.layout import Layout, start_processes, stop_processes
from components.lib.train.loggers import Sink
from components.lib.train.session import Preempted, Session
from components.lib.train.setup import build_engine, open_store


class Loop(Protocol):
    """Drives a session; ``sinks`` receive its metrics."""

    sinks: list[Sink]

    def run(self, session: Session) -> None:
        """Step until ``trainer.max_steps``."""

    def close(self) -> None:
        """Flush the loggers."""


log = logging.getLogger("cosmos.train")


def make_loop(config: DiffusionConfig | TokenizerConfig, layout: Layout) -> Loop:
    """The loop that ``trainer.engine`` names. Lightning and NeMo are imported only if wanted."""
    if config.trainer.engine == "lightning":
        from components.lib.train.loop_lightning import LightningLoop

        return LightningLoop(config, layout)
    from components.lib.train.loop_plain import PlainLoop

    return PlainLoop(config, layout)


def train(config: DiffusionConfig | TokenizerConfig) -> int:
    """Train and export. Returns the exit code: 0, or EXIT_RESUME after SIGTERM."""
    # FSDP2 warns that the DiT returns a view; nothing here changes an output in place.
    warnings.filterwarnings("ignore", message=".*returned a view tensor.*")
    config = resolve_layout(config)
    layout = start_processes(config.trainer, model_parallel=isinstance(config, DiffusionConfig))
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
    stop_processes()
    return 0
