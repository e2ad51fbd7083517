"""Progress of long work: a bar on a terminal, a plain line every few seconds elsewhere.

Local runs execute stages in child processes whose output is a pipe. The command line passes them
the terminal's name in COSMOS_PROGRESS_TTY, and their bars are drawn there.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.lib import environment
from components.lib.contract import Progress, ProgressTask

log = logging.getLogger("cosmos")


class _LineTask:
    def __init__(self, what: str, total: float | None, unit: str, every_s: float) -> None:
        self.what, self.total, self.unit, self.every_s = what, total, unit, every_s
        self.done = 0.0
        self.started = self.last = time.monotonic()
        self.said = -1.0  # how much was done when the last line was written

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.last >= self.every_s:
            self.last = now
            self.say(note)

    def say(self, note: str = "") -> None:
        if self.said == self.done:
            return
        self.said = self.done
        elapsed = max(time.monotonic() - self.started, 1e-9)
        rate = self.done / elapsed
        text = f"{self.what}: {self.done:g}"
        if self.total:
            text += f"/{self.total:g}"
        text += f" {self.unit}".rstrip() + f", {rate:.3g}/s"
        if self.total and 0 < self.done < self.total:
            text += f", {(self.total - self.done) / rate:.0f} s left"
        log.info("%s%s", text, f" ({note})" if note else "")


class LineProgress:
    """Log lines, at most one per task every ``every_s`` seconds, and one when it ends."""

    def __init__(self, every_s: float = 5.0) -> None:
        self.every_s = every_s

    def log(self, message: str) -> None:
        log.info("%s", message)

    @contextmanager
    def task(self, what: str, total: float | None = None, unit: str = "") -> Iterator[ProgressTask]:
        task = _LineTask(what, total, unit, self.every_s)
        yield task
        task.say()


class _BarTask:
    def __init__(self, bar: object, identity: object) -> None:
        self.bar, self.identity = bar, identity

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.bar.update(self.identity, advance=amount, note=note)  # type: ignore[attr-defined]


class BarProgress(LineProgress):
    """Bars drawn by rich on ``terminal``; log lines as usual."""

    def __init__(self, terminal: str) -> None:
        super().__init__()
        self.terminal = terminal

    @contextmanager
    def task(self, what: str, total: float | None = None, unit: str = "") -> Iterator[ProgressTask]:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        with Path(self.terminal).open("w") as stream:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(unit),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            console = Console(file=stream, force_terminal=True)
            with RichProgress(*columns, console=console, transient=True) as bar:
                identity = bar.add_task(what, total=total, note="")
                yield _BarTask(bar, identity)


def default_progress() -> Progress:
    """Bars when a terminal is attached, log lines otherwise."""
    terminal = os.environ.get(environment.PROGRESS_TTY)
    if terminal is None and sys.stderr.isatty():
        terminal = os.ttyname(sys.stderr.fileno())
    return BarProgress(terminal) if terminal else LineProgress()
