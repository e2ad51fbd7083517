"""The loop of the guides' users: Lightning's Trainer, set up by NeMo's exp_manager.

Both come with what their users expect (experiment folder, loggers, timing callback, callbacks of
their own); the core keeps what they would get wrong with sharded parameters. In one line each, what
stands beside theirs and why:

* gradient norm and clipping: the stock norm differs between tensor-parallel ranks;
* checkpoints and resume: NeMo's are a local folder with pickles and lose the data position;
* moving average: NeMo's leaves averaged weights in the model and cannot resume from a folder;
* preemption: NeMo's works on CUDA only.

One "batch" of this Trainer is one optimizer step, so its step counter means what users think.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader, IterableDataset

from components.lib.train.loggers import Sink, wandb_project
from components.lib.train.parallel.layout import ParallelLayout
from components.lib.train.session import Session
from components.lib.train.settings.config import TrainConfig


class CoreStrategy(ModelParallelStrategy):
    """Lightning's model-parallel strategy over groups and shards that the core has made."""

    def __init__(self, layout: ParallelLayout) -> None:
        super().__init__(data_parallel_size=layout.dp, tensor_parallel_size=layout.tp)
        self.layout = layout

    @property
    def root_device(self) -> torch.device:
        """This rank's device."""
        return self.layout.device

    def setup_environment(self) -> None:
        """The process group exists; only Lightning's ranks are to be set."""
        assert self.accelerator is not None
        self.accelerator.setup_device(self.root_device)
        self.set_world_ranks()
        self._device_mesh = self.layout.mesh

    def setup(self, trainer: Trainer) -> None:
        """The model is sharded already; only the optimizer is to be taken over."""
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        self.setup_optimizers(trainer)
        self.setup_precision_plugin()


class CoreModule(LightningModule):
    """Hands each optimizer step to the core."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.session = session

    def configure_model(self) -> None:
        """Done by the core before the Trainer starts."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The core's."""
        return self.session.engine.optimizer

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One optimizer step. The optimizer is stepped through Lightning, which counts it."""
        wrapped: Any = self.optimizers()
        self.session.after_step(self.session.engine.train_step(wrapped.step))


class _Start(Callback):
    """Brings Lightning's counter to the resumed step, and SIGTERM to the session."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After Lightning has put in its own handlers."""
        progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.total.ready = progress.total.completed = self.session.engine.step
        # Lightning would raise between steps; the session writes a checkpoint first.
        signal.signal(signal.SIGTERM, self.session.on_sigterm)


class _Steps(IterableDataset[int]):
    """An endless count: the core knows which samples a step needs."""

    def __iter__(self) -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1


class LightningLoop:
    """Trainer and exp_manager of one run."""

    def __init__(self, config: TrainConfig, layout: ParallelLayout) -> None:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.trainer = Trainer(
            accelerator="gpu" if layout.device.type == "cuda" else "cpu",
            devices=local,
            num_nodes=layout.world // local,
            strategy=CoreStrategy(layout),
            max_steps=config.trainer.max_steps,
            max_epochs=-1,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            check_val_every_n_epoch=None,
            log_every_n_steps=config.trainer.log_every_n_steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        _exp_manager(self.trainer, config)
        self.sinks: list[Sink] = [self._log] if layout.is_main else []

    def run(self, session: Session) -> None:
        """Step until ``trainer.max_steps``."""
        if session.engine.step >= session.max_steps:
            return
        callbacks: list[Any] = self.trainer.callbacks
        callbacks.insert(0, _Start(session))
        self.trainer.fit(CoreModule(session), DataLoader(_Steps(), batch_size=None))

    def close(self) -> None:
        """Flush the loggers."""
        for logger in self.trainer.loggers:
            logger.finalize("success")

    def _log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        for logger in self.trainer.loggers:
            logger.log_metrics({f"{split}/{name}": v for name, v in values.items()}, step=step)


def _exp_manager(trainer: Trainer, config: TrainConfig) -> None:
    from nemo.utils import logging as nemo_logging
    from nemo.utils.exp_manager import exp_manager

    # It prints its whole schema, and an error because the strategy is not Lightning's own DDP.
    nemo_logging.setLevel(nemo_logging.CRITICAL)
    wandb = bool(os.environ.get("WANDB_API_KEY"))
    exp_manager(
        trainer,
        {
            "explicit_log_dir": str(Path(config.log.log_dir).resolve() / "logs"),
            "name": config.log.name,
            "create_tensorboard_logger": config.log.tensorboard,
            "create_wandb_logger": wandb,
            "wandb_logger_kwargs": {
                "project": wandb_project(config.log, os.environ),
                "name": config.log.name,
            }
            if wandb
            else None,
            "create_checkpoint_callback": False,
            "create_preemption_callback": False,
            "resume_if_exists": False,
            "disable_validation_on_resume": False,
            "log_tflops_per_sec_per_gpu": False,
            # On the other ranks exp_manager waits this long for the first one's folder.
            "seconds_to_sleep": 0,
        },
    )
