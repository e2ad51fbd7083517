"""Patience with a service that fails for a while: pauses that grow, up to a limit, said once.

The caller decides what may pass and for how long; this only waits. A problem is told when it first
comes and when it changes, not at every try.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Patience:
    """One call's. ``waited`` is the time since its first try, in seconds."""

    def __init__(
        self,
        say: Callable[[str], object],
        *,
        pause_s: float = 0.5,
        longest_s: float = 30.0,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        """``say`` is called with a problem; ``sleep`` stands in for `time.sleep`."""
        self.say, self.pause_s, self.longest_s = say, pause_s, longest_s
        self.sleep = sleep or time.sleep
        self.waited = 0.0
        self._started = time.monotonic()
        self._said = ""

    def wait(self, problem: str, limit_s: float, after_s: float = 0.0) -> bool:
        """Wait for the next try; False when ``limit_s`` is used up.

        ``after_s`` is what the service asked to be left alone for, if it did.
        """
        self.waited = max(time.monotonic() - self._started, self.waited)
        if self.waited >= limit_s:
            return False
        if problem != self._said:
            self.say(problem)
            self._said = problem
        pause = min(max(after_s, self.pause_s), max(limit_s - self.waited, 0.05))
        self.sleep(pause)
        self.waited += pause
        self.pause_s = min(self.pause_s * 2, self.longest_s)
        return True
