"""Processes that work for this one: how they end with it, what they see, what they may take.

A child must not outlive its parent, however that ends. Linux can send it a signal then
(`die_with_parent`); since that fires when the *thread* ends that started the child, a child that a
pool of threads starts looks itself who its parent is (`end_with_parent`). Children that open what
strangers wrote get an environment without secrets and bounds on memory and files.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LOOK_S = 1.0
#: What a child sees of the environment: enough to start Python, and no credentials.
_HARMLESS = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV")
#: The folder that holds `components`.
ROOT = Path(__file__).parents[3]
# Run by a bare interpreter: ask for SIGKILL when the parent dies, then become the program.
_BIND = """
import ctypes, os, signal, sys
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread ends that started it, even in the middle
    of a decode. Elsewhere than on Linux it does nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end_with_parent() -> None:
    """End this process within a second of its parent's end, whichever thread had started it."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        os._exit(0)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def bound_to_parent(program: Sequence[str]) -> list[str]:
    """The command that runs a program of others so that it dies with the thread that starts it."""
    return [sys.executable, "-I", "-S", "-c", _BIND, str(os.getpid()), *program]


def harmless_environment() -> dict[str, str]:
    """For a child of this project that opens foreign files: no secret of the parent's is in it."""
    values = {name: os.environ[name] for name in _HARMLESS if name in os.environ}
    roots = [str(ROOT), *filter(None, [values.get("PYTHONPATH")])]
    return {**values, "PYTHONPATH": os.pathsep.join(roots), "OPENBLAS_NUM_THREADS": "1"}


def bound_resources(memory_bytes: int, file_bytes: int = 0) -> None:
    """Bound the address space of this process and the files that it may write; no core files."""
    for limit, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
