"""Run a stage in a process that is killed at random moments, until it gets through.

The processes are forks of one that has imported what the stage needs: importing takes longer than
the work, and kills shall hit the work.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping

from components.lib.contract import StageConfig

PROGRAM = """
import importlib, json, os, sys, traceback
from components.lib.progress import LineProgress
from components.lib.store import ObjectStore
module = importlib.import_module(f"components.{sys.argv[1]}.stage")
settings = importlib.import_module(f"components.{sys.argv[1]}.config")
import components.latent_encoding.engine
from transformers import AutoTokenizer, T5EncoderModel

def work(line):
    os.setsid()
    print(json.dumps({"pid": os.getpid()}), flush=True)
    try:
        config = settings.CONFIG.model_validate_json(line)
        result = module.run(config, ObjectStore.from_env(), LineProgress())
        print(json.dumps({"uri": result.manifest_uri}), flush=True)
    except BaseException:
        print(json.dumps({"error": traceback.format_exc()}), flush=True)
    finally:
        os._exit(0)

print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        work(line)
    os.waitpid(child, 0)
    print(json.dumps({"ended": True}), flush=True)
"""


def kill_count() -> int:
    """How often to kill: COSMOS_KILLS, or a few for a short test."""
    return int(os.environ.get("COSMOS_KILLS", "3"))


def long_form() -> bool:
    """Whether this is `make campaign-kills`."""
    return "COSMOS_KILLS" in os.environ


class Stage:
    """Runs one stage, each time in a fork and a process group of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def run(self, config: StageConfig, limit_s: float | None = None) -> str:
        """URI of the manifest; empty when the work was killed because ``limit_s`` were over."""
        assert self.process.stdin is not None
        self.process.stdin.write(config.model_dump_json() + "\n")
        self.process.stdin.flush()
        said = self._answer()
        timer = threading.Timer(limit_s or 0, os.killpg, (said["pid"], signal.SIGKILL))
        if limit_s is not None:
            timer.start()
        while "ended" not in (answer := self._answer()):
            said |= answer
        timer.cancel()
        assert "error" not in said, said["error"]
        assert "uri" in said or limit_s is not None
        return str(said.get("uri", ""))

    def _answer(self) -> dict[str, object]:
        assert self.process.stdout is not None
        answer: dict[str, object] = json.loads(self.process.stdout.readline())
        return answer


@contextlib.contextmanager
def imported(stage: str, env: Mapping[str, str]) -> Iterator[Stage]:
    """A process that has imported the stage, for as long as it is needed."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, stage],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**env, "OMP_NUM_THREADS": "1"},
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        yield Stage(process)
    finally:
        process.kill()
        process.communicate()


def run_undisturbed(stage: Stage, config: StageConfig) -> tuple[str, float]:
    """URI of the manifest, and the seconds of work."""
    begun = time.monotonic()
    uri = stage.run(config)  # the test has a limit of its own
    return uri, time.monotonic() - begun


def run_with_kills(
    stage: Stage, config: StageConfig, seconds: float, kills: int, seed: int
) -> list[str]:
    """Kill ``kills`` runs that had not finished; manifest URIs of all that got through.

    A run that finishes before its kill ends a chain; the next one starts on empty storage.
    """
    generator = random.Random(seed)
    done: list[str] = []
    killed = 0

    def fresh() -> StageConfig:
        root = {"storage_root": f"{config.storage_root}/chain-{len(done)}"}
        return config.model_copy(update=root)

    while killed < kills:
        if uri := stage.run(fresh(), generator.uniform(0, seconds)):
            done.append(uri)
        else:
            killed += 1
    return [*done, stage.run(fresh())]
