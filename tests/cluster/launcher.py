"""A launcher in a child process, with the token of the account that steps have."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from tests.cluster.kubectl import ROOT

# Runs a Python expression about `request` in a child: the launcher, as a step would run it.
LAUNCHER = """
import json, sys
from components.lib.contract import UserError
from components.lib.logs import configure_logging
from components.lib.progress import LineProgress
from components.training.launch import pytorchjob
from components.training.launch.interface import LaunchRequest
configure_logging()
try:
    pytorchjob.launch(LaunchRequest.model_validate_json(sys.argv[1]), LineProgress())
except UserError as error:
    print("USER ERROR", error, flush=True)
    sys.exit(1)
print("LAUNCHER DONE", flush=True)
"""


class Launch:
    """A launcher in a child process, as a step runs it."""

    def __init__(self, config: Path, request: dict[str, Any], folder: Path) -> None:
        self.log = folder / f"launcher-{uuid.uuid4().hex[:8]}.log"
        env = {**os.environ, "KUBECONFIG": str(config), "PYTHONUNBUFFERED": "1"}
        with self.log.open("w") as stream:
            self.child = subprocess.Popen(
                [sys.executable, "-c", LAUNCHER, json.dumps(request)],
                env=env,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
            )

    @property
    def text(self) -> str:
        return self.log.read_text()

    def until(self, what: str, seconds: float = 150) -> None:
        """Wait until the log holds ``what``."""
        end = time.monotonic() + seconds
        while what not in self.text:
            assert self.child.poll() is None or what in self.text, self.text
            assert time.monotonic() < end, f"no '{what}' in\n{self.text}"
            time.sleep(0.2)

    def wait(self, seconds: float = 300) -> int:
        try:
            return self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the launcher still runs:\n{self.text}") from None

    def kill(self, how: signal.Signals) -> None:
        self.child.send_signal(how)
