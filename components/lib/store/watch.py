"""Watching a prefix for new objects, for stores that send no notifications.

Each look lists the prefix and compares it with what was there when a run was last started. New
objects form a batch that is ready once nothing was added for a while (a drive is uploaded file by
file), or once its oldest object has waited long enough, so that a steady stream does not wait for
ever. An object counts as new again when its content changes; deletions start nothing.

What has been taken is kept in the store, as one digest of each object, and written after the run
was started: a poller that dies in between starts it again, which a run that finds nothing new
survives well. The trade-off: a look costs one listing, a second for every few thousand objects.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection
from pathlib import PurePosixPath

from pydantic import ValidationError

from components.lib.contract import Frozen, UserError
from components.lib.store.client import ObjectStore
from components.lib.store.session import ObjectInfo


class WatchState(Frozen):
    """What was there when a run was last started, and which run that was."""

    prefix: str
    run: str = ""
    taken: tuple[str, ...] = ()


class BucketWatch:
    """New objects under a prefix. ``suffixes`` (lower case, with dots) says which ones count."""

    def __init__(
        self,
        store: ObjectStore,
        prefix: str,
        state_uri: str,
        suffixes: Collection[str],
        *,
        settle_s: float,
        max_wait_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store, self.prefix, self.state_uri = store, prefix.rstrip("/") + "/", state_uri
        self.suffixes, self.settle_s, self.max_wait_s = frozenset(suffixes), settle_s, max_wait_s
        self.clock = clock
        self.state: WatchState | None = None
        self.batch: frozenset[str] = frozenset()
        self.present: frozenset[str] = frozenset()
        self.first = self.last = 0.0

    @property
    def run(self) -> str:
        """The run that was started last, also by an earlier poller."""
        return self._state().run

    def look(self) -> int:
        """List once. The number of new objects when they are ready, else 0. Raises StoreError."""
        taken, now = frozenset(self._state().taken), self.clock()
        self.present = frozenset(
            _identity(info) for info in self.store.list(self.prefix) if self._counts(info.uri)
        )
        fresh = self.present - taken
        if not fresh <= self.batch:
            self.last = now
            self.first = self.first if self.batch else now
        self.batch = fresh
        waited = now - self.last >= self.settle_s or now - self.first >= self.max_wait_s
        return len(fresh) if waited else 0

    def take(self, run: str) -> None:
        """Remember that ``run`` was started for all that the last look saw."""
        state = WatchState(prefix=self.prefix, run=run, taken=tuple(sorted(self.present)))
        self.store.put_bytes(self.state_uri, state.model_dump_json().encode())
        self.state, self.batch = state, frozenset()

    def _counts(self, uri: str) -> bool:
        path = PurePosixPath(uri)
        return path.suffix.lower() in self.suffixes and not path.name.startswith(".")

    def _state(self) -> WatchState:
        if self.state is None:
            self.state = self._stored()
        return self.state

    def _stored(self) -> WatchState:
        if self.store.stat(self.state_uri) is None:
            return WatchState(prefix=self.prefix)
        try:
            state = WatchState.model_validate_json(self.store.get_bytes(self.state_uri))
        except ValidationError as error:
            raise UserError(
                f"{self.state_uri} is no trigger's state. Delete it to start anew, or name the "
                "trigger differently."
            ) from error
        if state.prefix != self.prefix:
            raise UserError(
                f"{self.state_uri} belongs to a trigger on {state.prefix}, not on {self.prefix}. "
                "Name the trigger differently."
            )
        return state


def _identity(info: ObjectInfo) -> str:
    """32 hex digits for an object's name and content."""
    text = f"{info.uri}\n{info.bytes}\n{info.etag}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]
