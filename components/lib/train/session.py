"""One run from start to end, around whichever loop drives it.

A session resumes, decides after each step what is due (validation, checkpoint, log line, stop),
and finishes by exporting the model. The loops (`loop_plain`, `loop_lightning`) only call
`Engine.train_step` and `Session.after_step`.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from components.lib.contract import UserError
from components.lib.manifest import FileEntry
from components.lib.run_files import METRICS, RESULT, SETTINGS
from components.lib.store import ObjectStore
from components.lib.train.checkpoint.checkpoint import Checkpoints, DamagedCheckpoint
from components.lib.train.checkpoint.storage import (
    FolderManifest,
    FolderStorage,
    ObjectStorage,
    Storage,
)
from components.lib.train.engine import Engine
from components.lib.train.loggers import MetricsLog, Sink
from components.lib.train.parallel.weights import gather_weights
from components.lib.train.settings.config import TrainConfig
from components.lib.train.setup import versions
from components.lib.train.starting import local_rank
from components.lib.training_progress import PROGRESS_VARIABLE, TrainingProgress

log = logging.getLogger("cosmos.train")


class Preempted(Exception):
    """SIGTERM arrived and a checkpoint was written. Start again to go on."""


class Session:
    """Everything around the optimizer steps of one run."""

    def __init__(
        self,
        config: TrainConfig,
        engine: Engine,
        store: ObjectStore | None,
        sinks: Sequence[Sink] = (),
    ) -> None:
        self.config, self.engine, self.layout = config, engine, engine.layout
        self.log_dir = Path(config.log.log_dir)
        self.storage: Storage = FolderStorage(self.log_dir / "run")
        if config.log.store_uri:
            assert store is not None
            self.storage = ObjectStorage(store, config.log.store_uri)
        self.checkpoints = Checkpoints(
            self.storage, self.layout, config.log.ckpt, self.log_dir / "checkpoints"
        )
        self.settings = {
            "config": config.model_dump(mode="json"),
            "run": engine.task.describe(),
            "layout": {"tp": self.layout.tp, "dp": self.layout.dp, "world": self.layout.world},
            "state_bytes_of_rank_0": engine.state_bytes(),
            "global_batch_size": engine.global_batch,
            "versions": versions(),
        }
        self.metrics: MetricsLog | None = None
        if self.layout.is_main:
            self.metrics = MetricsLog(self.log_dir / "logs", sinks)
        self._terminated = False
        self._saved_step = -1
        self._validated: tuple[int, float] | None = None
        self._began = time.monotonic()
        self._first_step = 0
        self._control = dist.new_group(backend="gloo")

    @property
    def max_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.config.trainer.max_steps

    def start(self) -> None:
        """Resume if there is something to resume, then begin to read data."""
        signal.signal(signal.SIGTERM, self.on_sigterm)
        if self.layout.is_main:
            self.storage.put_text(SETTINGS, json.dumps(self.settings, indent=1))
        if self.config.resume.resume_if_exists:
            self._resume()
        self._first_step = self.engine.step
        if self.layout.device.type == "cuda":
            self.engine.prepare_saves()
        self.engine.start_data()
        if self.engine.step == 0 and self.config.trainer.val_check_interval:
            self._validate()
        self._began = time.monotonic()

    def after_step(self, values: dict[str, float]) -> None:
        """Log, validate and save as due. Raises Preempted after SIGTERM on any rank."""
        trainer, step = self.config.trainer, self.engine.step
        last = step >= self.max_steps
        if step % trainer.log_every_n_steps == 0 or last:
            self._log_step(values)
        interval = trainer.val_check_interval
        if interval and (step % interval == 0 or last):
            self._validate()
        every = self.config.log.ckpt.every_n_train_steps
        if last or (every and step % every == 0):
            self._save()
        if self._anyone_terminated():
            self._save()
            self.checkpoints.wait()
            raise Preempted(f"stopped by SIGTERM after step {step}; start again to go on")

    def finish(self) -> None:
        """Wait for the last checkpoint, export the model and write the result file."""
        self.engine.stop_data()
        self.checkpoints.wait()
        exported = self.engine.step
        if self.config.log.ckpt.export == "best":
            exported = self._take_best()
        files = self._export("model", {})
        if self.engine.ema:
            files += self._export("model_ema", self.engine.ema)
        if not self.layout.is_main:
            dist.barrier(group=self._control)
            return
        assert self.metrics is not None
        files.append(self.storage.put_text(METRICS, self.metrics.text()))
        files.append(self.storage.put_text(SETTINGS, json.dumps(self.settings, indent=1)))
        for path in sorted((self.log_dir / "logs").glob("events.out.tfevents.*")):
            files.append(self.storage.put(path, f"tensorboard/{path.name}"))
        result = {
            "files": [entry.model_dump(mode="json") for entry in files],
            "steps": self.engine.step,
            "exported_step": exported,
            "consumed_samples": self.engine.consumed,
            "run": self.settings["run"],
            "seconds": time.monotonic() - self._began,
        }
        self.storage.put_text(RESULT, json.dumps(result, indent=1))
        dist.barrier(group=self._control)

    def _resume(self) -> None:
        folder, damage = "", ""
        while (newest := self.checkpoints.newest(before=folder)) is not None:
            folder, manifest = newest
            began = time.monotonic()
            try:
                text = self._read(folder, manifest)
            except DamagedCheckpoint as error:
                damage = str(error)
                if self.layout.is_main:
                    log.warning("%s cannot be read, trying the one before: %s", folder, damage)
                continue
            self.engine.load_state(manifest.state)
            if self.metrics is not None:
                self.metrics.restore(text)
            self._saved_step = self.engine.step
            if self.layout.is_main:
                took, step = time.monotonic() - began, self.engine.step
                log.info("resuming from %s at step %d, read in %.1f s", folder, step, took)
            return
        if damage:
            raise UserError(
                f"No checkpoint of this run can be read: {damage} To train from the beginning, "
                "delete the run's checkpoints, or give it another log.store_uri or log.log_dir."
            )

    def _read(self, folder: str, manifest: FolderManifest) -> str:
        """Take over a checkpoint's tensors, or none if it is damaged. Returns its metrics."""
        views = self.engine.tensors()
        self.engine.copies.wait()
        text = self.checkpoints.load(folder, manifest, views, local_rank())
        self.engine.load_tensors(views)
        return text

    def _take_best(self) -> int:
        """Put the weights of the best checkpoint in place. Returns its step."""
        best = self.checkpoints.best()
        if best is None:
            if self.layout.is_main:
                log.warning(
                    "no checkpoint fell on a validation, so the last weights become the model: "
                    "make log.ckpt.every_n_train_steps a multiple of trainer.val_check_interval"
                )
            return self.engine.step
        folder, manifest = best
        step = int(manifest.state["step"])
        if step != self.engine.step:
            try:
                self._read(folder, manifest)
            except DamagedCheckpoint as error:
                raise UserError(
                    f"Training is complete, but its best checkpoint cannot be read: {error} Delete "
                    f"{folder} and start again to have the next best exported."
                ) from error
        if self.layout.is_main:
            loss = manifest.state["validation_loss"]
            log.info("the model is that of step %d, held-out loss %.4f", step, loss)
        return step

    def _log_step(self, values: dict[str, float]) -> None:
        if self.metrics is None:
            return
        step = self.engine.step
        self.metrics.write(step, "train", values)
        done = step - self._first_step
        left = (time.monotonic() - self._began) / max(done, 1) * (self.max_steps - step)
        progress = TrainingProgress(
            step=step, max_steps=self.max_steps, loss=values["loss"], eta_seconds=round(left, 1)
        )
        asked = PROGRESS_VARIABLE in os.environ
        log.info("%s", progress.line() if asked else progress.words())

    def _validate(self) -> None:
        step = self.engine.step
        pictures = self.log_dir / "pictures" / f"step-{step:08d}"
        values = self.engine.task.validation(pictures, step)
        self.engine.reshard()
        self._validated = (step, values["loss"])
        for path in sorted(pictures.glob("*.png")) if local_rank() == 0 else []:
            self.storage.put(path, f"pictures/step-{step:08d}/{path.name}")
        if self.metrics is not None:
            self.metrics.write(step, "validation", values)
            shown = ", ".join(
                f"{name} {values[name]:.4f}" for name in ("loss", "psnr", "ssim") if name in values
            )
            log.info("validation after step %d: %s", step, shown)

    def _save(self) -> None:
        step = self.engine.step
        if step == self._saved_step:
            return
        state: dict[str, Any] = self.engine.state()
        if self._validated is not None and self._validated[0] == step:
            state["validation_loss"] = self._validated[1]
        text = self.metrics.text() if self.metrics is not None else ""
        began = time.monotonic()
        self.checkpoints.wait()  # until the save before this one needs its host copies no more
        tensors = self.engine.tensors()
        self.checkpoints.save(step, tensors, state, text, self.engine.copies.wait)
        if self.layout.is_main:
            stopped = time.monotonic() - began
            log.info("checkpoint of step %d: training stood still for %.2f s", step, stopped)
        self._saved_step = step

    def _export(self, name: str, values: dict[str, torch.Tensor]) -> list[FileEntry]:
        folder = self.log_dir / "export" / name
        weights = gather_weights(
            self.engine.task.model, values, self.layout, self.engine.task.shard_dim
        )
        if not self.layout.is_main:
            for _ in weights:
                pass
            return []
        self.engine.task.export(folder, weights)
        paths = sorted(path for path in folder.iterdir() if path.is_file())
        # config.json makes the folder a model, so it goes last.
        paths.sort(key=lambda path: path.name == "config.json")
        return [self.storage.put(path, f"{name}/{path.name}") for path in paths]

    def on_sigterm(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: stop after this step."""
        self._terminated = True

    def _anyone_terminated(self) -> bool:
        flag = torch.tensor([int(self._terminated)])
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._control)
        return bool(flag.item())
