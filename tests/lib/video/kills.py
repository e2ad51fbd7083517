"""Run a data stage in a process that is killed at random moments, until it gets through."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping

from components.lib.contract import StageConfig

PROGRAM = """
import importlib, sys
from components.lib.progress import LineProgress
from components.lib.store import ObjectStore
module = importlib.import_module(f"components.{sys.argv[1]}.stage")
settings = importlib.import_module(f"components.{sys.argv[1]}.config")
config = settings.CONFIG.model_validate_json(sys.argv[2])
store = ObjectStore.from_env()
print("ready", flush=True)
print(module.run(config, store, LineProgress()).manifest_uri, flush=True)
"""


def kill_count() -> int:
    """How often to kill: COSMOS_KILLS, or a few for a short test."""
    return int(os.environ.get("COSMOS_KILLS", "3"))


def start(stage: str, config: StageConfig, env: Mapping[str, str]) -> subprocess.Popen[str]:
    """The stage in a process group of its own, at the moment when its work begins."""
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, stage, config.model_dump_json()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(env),
        text=True,
        start_new_session=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline().strip() == "ready"
    return child


def run_undisturbed(stage: str, config: StageConfig, env: Mapping[str, str]) -> tuple[str, float]:
    """URI of the manifest, and the seconds of work."""
    child = start(stage, config, env)
    begun = time.monotonic()
    out, err = child.communicate()  # the test has a limit of its own
    assert child.returncode == 0, err
    return out.strip(), time.monotonic() - begun


def run_with_kills(
    stage: str, config: StageConfig, env: Mapping[str, str], seconds: float, kills: int, seed: int
) -> list[str]:
    """Kill runs until ``kills`` of them had not finished; manifests of all that got through.

    A run that finishes before its kill ends a chain, and the next one begins on empty storage.
    """
    dice = random.Random(seed)
    done: list[str] = []
    while kills:
        here = {"storage_root": f"{config.storage_root}/{len(done)}"}
        child = start(stage, config.model_copy(update=here), env)
        try:
            out, err = child.communicate(timeout=dice.uniform(0, 0.9 * seconds))
        except subprocess.TimeoutExpired:
            kills -= 1
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
            continue
        assert child.returncode == 0, err
        done.append(out.strip())
    here = {"storage_root": f"{config.storage_root}/{len(done)}"}
    return [*done, run_undisturbed(stage, config.model_copy(update=here), env)[0]]
