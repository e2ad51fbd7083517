"""Whether torch.compile can work on this machine."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path


def has_compiler(device_type: str) -> bool:
    """What torch.compile needs beside torch: Python's headers, and a compiler for the launchers of
    a GPU's kernels (``CC``, else gcc or clang) or for a CPU's kernels (``CXX``, else g++)."""
    variable, usual = ("CXX", ["g++"]) if device_type == "cpu" else ("CC", ["gcc", "clang"])
    names = [os.environ[variable]] if os.environ.get(variable) else usual
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return header.is_file() and any(map(shutil.which, names))
