"""Private local folders of stages, which do not pile up when stages are killed.

Each folder holds a file that its owner keeps locked. The lock ends with its owner, however that
ends, so whoever makes the next folder removes those whose lock is free. Locks work across
containers that share a disk, where process ids would not.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "cosmos-scratch-"
_LOCK = ".owner"
_YOUNG_S = 60.0


@contextmanager
def scratch_folder(name: str, parent: Path | None = None) -> Iterator[Path]:
    """An empty folder for work on ``name``, removed at the end."""
    root = parent or Path(tempfile.gettempdir())
    remove_abandoned(root)
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{name}-", dir=root))
    try:
        with (folder / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            inner = folder / "work"
            inner.mkdir()
            yield inner
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(root: Path, young_s: float = _YOUNG_S) -> list[Path]:
    """Remove the folders under ``root`` whose owner is gone; returns them."""
    removed = []
    for folder in root.glob(f"{PREFIX}*"):
        try:
            with (folder / _LOCK).open("r+") as lock:
                # A folder this new may not have been locked yet.
                if time.time() - folder.stat().st_mtime < young_s:
                    continue
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder)
        except OSError:
            # In use, of another user, or just removed by its owner.
            continue
    return removed
