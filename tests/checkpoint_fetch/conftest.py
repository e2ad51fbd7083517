"""A hub on loopback that this process takes for Hugging Face, and tiny checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from components.lib.cosmos.formats.tiny import write_tiny
from tests.servers.hub import FakeHub, fake_hub


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """A hub without repositories."""
    with fake_hub() as server:
        yield server


@pytest.fixture
def hub_env(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of this process points at the fake hub, with an empty cache and no token."""
    values = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf-home")}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return values


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny set of checkpoints for the session."""
    return write_tiny(tmp_path_factory.mktemp("tiny"))
