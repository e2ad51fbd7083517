"""Kubernetes' own command line, as an administrator of the cluster that KUBECONFIG names."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMESPACE = "cosmos"


def find_kubectl() -> str:
    """The one on the PATH, else the one that a test cluster brings beside its KUBECONFIG."""
    beside = Path(os.environ["KUBECONFIG"]).parent.parent / "bin" / "kubectl"
    found = shutil.which("kubectl") or (str(beside) if beside.is_file() else None)
    if found is None:
        raise pytest.UsageError("The cluster tests need kubectl on the PATH.")
    return found


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    """Output of kubectl. Fails with its words."""
    done = subprocess.run(
        [find_kubectl(), *arguments], input=stdin, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
