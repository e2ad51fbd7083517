"""One tiny set of checkpoints in the official layouts for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.lib.cosmos.formats import tiny
from components.lib.cosmos.formats.importing import import_model
from components.lib.cosmos.formats.tiny import write_tiny


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def canonical(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every network of the tiny set as a canonical folder."""
    folder = tmp_path_factory.mktemp("canonical")
    for name in (tiny.DIT_FOLDER, tiny.CV_FOLDER, tiny.DV_FOLDER):
        import_model(checkpoints / name, folder / name)
    return folder
