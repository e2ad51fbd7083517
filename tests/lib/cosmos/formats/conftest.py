"""One tiny set of checkpoints in the official layouts for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.lib.cosmos.formats.tiny import write_tiny


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))
