"""SIGTERM and Ctrl-C end a launcher at whatever moment they come.

The signal handler raises nothing: an exception would come up in the middle of somebody's code,
whose ``except`` or ``finally`` may swallow or replace it, and the launcher would go on. It wakes a
thread that has waited since the start; that deletes the job with calls of its own and ends the
process, whatever the main thread is doing meanwhile, be it a call that hangs. The price is that
nobody's cleanup runs, of which there is little: scratch folders of ended processes are removed by
the next one that makes one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_NONE = 0


@contextlib.contextmanager
def cancelling(cancel: Callable[[], None]) -> Iterator[None]:
    """While open, the first signal calls ``cancel`` in another thread and ends the process.

    The exit code is 128 + the signal's number. Signals reach only the main thread; in another one
    this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: SimpleQueue[int] = SimpleQueue()  # the one queue whose put() a handler may call

    def wait() -> None:
        number = arrived.get()
        if number == _NONE:
            return
        try:
            cancel()
        finally:
            os._exit(128 + number)

    def stop(number: int, _frame: FrameType | None) -> None:
        arrived.put(number)

    thread = threading.Thread(target=wait, name="cancel", daemon=True)
    thread.start()
    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        arrived.put(_NONE)
        thread.join()  # for ever when a signal was first: the process ends in there
