"""The bare loop: oracle of the tests, loop of benchmarks, fast start of tiny runs."""

from __future__ import annotations

from pathlib import Path

from components.lib.train.loggers import Sink, TensorBoard, Wandb
from components.lib.train.parallel.layout import ParallelLayout
from components.lib.train.session import Session
from components.lib.train.settings.config import TrainConfig


class PlainLoop:
    """Steps and nothing else, with loggers of its own."""

    def __init__(self, config: TrainConfig, layout: ParallelLayout) -> None:
        self._loggers: list[TensorBoard | Wandb] = []
        folder = Path(config.log.log_dir) / "logs"
        if layout.is_main:
            if config.log.tensorboard:
                self._loggers.append(TensorBoard(folder))
            if Wandb.wanted():
                self._loggers.append(Wandb(folder, config.log))
        self.sinks: list[Sink] = [logger.write for logger in self._loggers]

    def run(self, session: Session) -> None:
        """Step until ``trainer.max_steps``."""
        engine = session.engine
        while engine.step < session.max_steps:
            session.after_step(engine.train_step())

    def close(self) -> None:
        """Flush the loggers."""
        for logger in self._loggers:
            logger.close()
