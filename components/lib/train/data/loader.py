"""Batches prepared ahead by threads, in a fixed order.

Threads and not processes: reading, PyAV and tensor copies release the interpreter lock, nothing has
to be pickled, and a training rank stays one process. Sample numbers decide what a batch holds, so
the loader has no state to save; a resumed run asks for later numbers.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

BatchT = TypeVar("BatchT")


class Loader(Generic[BatchT]):
    """Iterates ``make(numbers)`` for an endless sequence of sample numbers.

    ``wait_seconds`` is how long the last ``next`` had to wait for its batch.
    """

    def __init__(
        self,
        make: Callable[[list[int]], BatchT],
        numbers: Iterator[list[int]],
        *,
        workers: int,
        prefetch: int,
    ) -> None:
        self.wait_seconds = 0.0
        self._make, self._numbers = make, numbers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="loader")
        self._pending: deque[Future[BatchT]] = deque()
        for _ in range(prefetch):
            self._submit()

    def next(self) -> BatchT:
        """The next batch. An error in its making is raised here."""
        started = time.perf_counter()
        future = self._pending.popleft()
        batch = future.result()
        self.wait_seconds = time.perf_counter() - started
        self._submit()
        return batch

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _submit(self) -> None:
        self._pending.append(self._pool.submit(self._make, next(self._numbers)))
