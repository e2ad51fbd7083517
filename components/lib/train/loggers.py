"""Where a run's numbers go: JSONL and TensorBoard always, Weights & Biases when a key is there.

The JSONL file is the record: it travels with every checkpoint, and a resumed run goes on from the
text saved with the checkpoint, so it never holds a step twice.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.lib.train.config import LogConfig

log = logging.getLogger("cosmos.train")


class MetricsLog:
    """Metrics of one run, written by the first rank."""

    def __init__(self, folder: Path, config: LogConfig, settings: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        self.tensorboard_dir = folder / "tensorboard"
        self._lines: list[str] = []
        self._board = _tensorboard(self.tensorboard_dir) if config.tensorboard else None
        self._wandb = _wandb(folder, config, settings)
        self.path.write_text("")

    def restore(self, text: str) -> None:
        """Go on from the metrics saved with a checkpoint."""
        self._lines = text.splitlines()
        self.path.write_text(self.text())

    def text(self) -> str:
        """All lines so far."""
        return "".join(line + "\n" for line in self._lines)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """One line of metrics after optimizer step ``step`` (from 1; 0 is before the first)."""
        line = json.dumps({"step": step, "split": split, **values})
        self._lines.append(line)
        with self.path.open("a") as stream:
            stream.write(line + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{split}/{name}", value, step)
        if self._wandb is not None:
            self._wandb.log({f"{split}/{name}": value for name, value in values.items()}, step=step)

    def last_loss(self, split: str) -> float | None:
        """Loss of the newest line of a split."""
        for line in reversed(self._lines):
            record = json.loads(line)
            if record["split"] == split:
                return float(record["loss"])
        return None

    def close(self) -> None:
        """Flush and end the remote run."""
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _tensorboard(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


def _wandb(folder: Path, config: LogConfig, settings: Mapping[str, Any]) -> Any:
    if not os.environ.get("WANDB_API_KEY"):
        return None
    import wandb

    return wandb.init(
        project=wandb_project(config, os.environ),
        name=config.name,
        dir=str(folder),
        config=dict(settings),
        resume="allow",
    )


def wandb_project(config: LogConfig, env: Mapping[str, str]) -> str:
    """WANDB_PROJECT, else WANDB_PROJECT_NAME (the guides' variable), else the config."""
    return env.get("WANDB_PROJECT") or env.get("WANDB_PROJECT_NAME") or config.wandb_project
