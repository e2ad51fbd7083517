"""Where a run's numbers go: JSONL and TensorBoard always, Weights & Biases when a key is there.

The JSONL file is the record: it travels with every checkpoint, and a resumed run goes on from the
text saved with the checkpoint, so it never holds a step twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from components.lib.run_files import METRICS
from components.lib.train.settings.config import LogConfig

Sink = Callable[[int, str, Mapping[str, float]], None]


class MetricsLog:
    """The record of one run's metrics, written by the first rank and passed on to ``sinks``."""

    def __init__(self, folder: Path, sinks: Sequence[Sink] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / METRICS
        self.sinks = tuple(sinks)
        self._lines: list[str] = []
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
        for sink in self.sinks:
            sink(step, split, values)


class TensorBoard:
    """TensorBoard events in ``folder``."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """A `Sink`."""
        for name, value in values.items():
            self._writer.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Flush."""
        self._writer.close()


class Wandb:
    """A Weights & Biases run."""

    def __init__(self, folder: Path, config: LogConfig) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=wandb_project(config, os.environ),
            name=config.name,
            dir=str(folder),
            resume="allow",
        )

    @staticmethod
    def wanted() -> bool:
        """Whether the environment has a key."""
        return bool(os.environ.get("WANDB_API_KEY"))

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """A `Sink`."""
        self._run.log({f"{split}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        """End the run."""
        self._run.finish()


def wandb_project(config: LogConfig, env: Mapping[str, str]) -> str:
    """WANDB_PROJECT, else WANDB_PROJECT_NAME (the guides' variable), else the config."""
    return env.get("WANDB_PROJECT") or env.get("WANDB_PROJECT_NAME") or config.wandb_project
