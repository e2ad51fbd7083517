"""Runs a resolved config in this process and its peers."""

from __future__ import annotations

import logging
import warnings

import torch.distributed as dist

from components.lib.train import loop_plain
from components.lib.train.config import DiffusionConfig, TokenizerConfig
from components.lib.train.layout import start_processes
from components.lib.train.session import EXIT_RESUME, Preempted, Session
from components.lib.train.setup import build_engine, open_store

log = logging.getLogger("cosmos.train")


def train(config: DiffusionConfig | TokenizerConfig) -> int:
    """Train and export. Returns the exit code: 0, or EXIT_RESUME after SIGTERM."""
    # FSDP2 warns that the DiT returns a view; nothing here changes an output in place.
    warnings.filterwarnings("ignore", message=".*returned a view tensor.*")
    layout = start_processes(config.trainer, model_parallel=isinstance(config, DiffusionConfig))
    store = open_store(config)
    session = Session(config, build_engine(config, layout, store), store)
    try:
        session.start()
        loop_plain.run(session)
        session.finish()
    except Preempted as stop:
        log.warning("rank %d %s", layout.rank, stop)
        return EXIT_RESUME
    finally:
        session.engine.stop_data()
    dist.destroy_process_group()
    return 0
