"""The loop of `cosmos-pipelines trigger`: look, wait, start a run, survive what goes wrong.

A listing that fails is tried again at the next look, for ever: a store that is down for an hour
costs an hour. A start that fails is tried again with growing pauses, and after `MAX_FAILURES` in a
row the loop gives up, because then something is wrong that waiting does not mend. While the run
that was started last is still going, no other is started.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from components.lib.contract import Frozen, UserError
from components.lib.store.errors import StoreError

MAX_FAILURES = 5
LONGEST_PAUSE_S = 3600.0


class Watch(Protocol):
    """What the loop needs of `components.lib.store.watch.BucketWatch`."""

    @property
    def run(self) -> str:
        """The run that was started last."""

    def look(self) -> int:
        """How many new objects are ready."""

    def take(self, run: str) -> None:
        """Remember that a run was started for them."""


class Limits(Frozen):
    """When to look and when to stop. None: no limit."""

    every_s: float = 60.0
    max_runs: int | None = None
    for_s: float | None = None


def poll(
    watch: Watch,
    start: Callable[[], str],
    going: Callable[[str], bool],
    say: Callable[[str], None],
    limits: Limits,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Start runs until a limit is reached; returns how many. ``start`` returns the run's id.

    ``going`` says whether a run is still under way. Raises UserError after `MAX_FAILURES` starts
    that failed in a row.
    """
    began, runs, failures, trouble = clock(), 0, 0, ""
    while True:
        pause = limits.every_s
        try:
            ready = watch.look()
            busy = bool(ready and watch.run and going(watch.run))
            trouble = _change(trouble, "", say)
        except StoreError as error:
            ready, busy = 0, False
            trouble = _change(trouble, str(error), say)
        if ready and not busy:
            say(f"{ready} new objects: starting a run")
            try:
                run = start()
            except UserError as error:
                failures += 1
                say(f"the run failed: {error}")
                if failures >= MAX_FAILURES:
                    raise UserError(f"{failures} runs in a row failed; the last: {error}") from (
                        error
                    )
                pause = min(limits.every_s * 2**failures, LONGEST_PAUSE_S)
            else:
                runs, failures = runs + 1, 0
                _remember(watch, run, say)
        if limits.max_runs is not None and runs >= limits.max_runs:
            return runs
        if limits.for_s is not None:
            left = limits.for_s - (clock() - began)
            if left <= 0:
                return runs
            pause = min(pause, left)
        sleep(pause)


def _remember(watch: Watch, run: str, say: Callable[[str], None]) -> None:
    try:
        watch.take(run)
    except StoreError as error:
        say(f"the store does not keep what was taken, so it will be taken again: {error}")


def _change(before: str, now: str, say: Callable[[str], None]) -> str:
    """Say trouble once, and that it is over."""
    if now and now != before:
        say(f"cannot look now: {now}")
    if before and not now:
        say("the store answers again")
    return now
