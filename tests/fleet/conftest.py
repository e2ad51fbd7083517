"""A fleet that delivers small videos, and the command that retrains on them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.lib.manifest import MANIFEST_NAME
from components.lib.registry import Pointer, Registry, models_root
from components.lib.store import ObjectStore
from components.lib.video.encode import write_mp4
from components.lib.video.ledger import processed

CLI = str(Path(sys.executable).parent / "cosmos-pipelines")
MODEL = "tiny-tokenizer"
SIZE = (64, 96)


def write_street(path: Path, seed: int) -> Path:
    """17 frames of smooth coloured waves that move; every seed another street."""
    dice = np.random.default_rng(seed)
    y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    waves = [
        (*dice.uniform(0.02, 0.2, 2), dice.uniform(-0.5, 0.5), dice.uniform(0, 6, 3))
        for _ in range(4)
    ]

    def frame(time: int) -> Any:
        picture = np.zeros((*SIZE, 3))
        for along_x, along_y, speed, colours in waves:
            phase = along_x * x + along_y * y + speed * time
            picture += np.sin(phase[..., None] + colours)
        return np.uint8(128 + 30 * picture)

    write_mp4(path, (frame(time) for time in range(17)), 24)
    return path


class Fleet:
    """The inbox, the retraining command, and what it left in the store."""

    def __init__(self, store: ObjectStore, root: str, workspace: Path, env: dict[str, str]) -> None:
        self.store, self.root, self.workspace = store, root, workspace
        self.env = {**env, "OMP_NUM_THREADS": "1"}
        self.registry = Registry(store, models_root(root), MODEL)
        self.names: dict[bytes, str] = {}
        self.reports: set[str] = set()

    def arrives(self, drive: str, seed: int, name: str = "0.mp4") -> None:
        """A video of a drive is uploaded; ``seed`` decides its content."""
        path = write_street(self.workspace / "upload.mp4", seed)
        info = self.store.put_file(path, f"{self.root}/inbox/drive={drive}/{name}")
        assert info.sha256 is not None
        self.names.setdefault(bytes.fromhex(info.sha256), drive)

    def arrives_broken(self, name: str, data: bytes) -> None:
        """Something is uploaded that is not what its name says."""
        self.store.put_bytes(f"{self.root}/inbox/{name}", data)

    def command(self, *settings: str) -> list[str]:
        """The retraining command, with these overrides on top of the usual ones."""
        usual = (
            "video_discovery.validation_fraction=0.5", "training.nproc=1",
            "trainer.max_steps=24", "trainer.val_check_interval=0",
            "log.ckpt.every_n_train_steps=2", "data.task_encoder.resize_height=64",
            "data.task_encoder.resize_width=96", "evaluation.frames=9", "evaluation.crop=64",
            "evaluation.shown=0",
        )  # fmt: skip
        words = [CLI, "run", "fleet-tokenizer", "--local", "--external-store"]
        words += ["--videos", f"{self.root}/inbox", "--workspace", str(self.workspace)]
        words += ["-p", f"storage_root={self.root}", "-p", "min_new_videos=3"]
        for setting in (*usual, *settings):
            words += ["--set", setting]
        return words

    def retrain(self, *settings: str, fails: bool = False) -> dict[str, Any]:
        """A night's run to its end. Returns what its report says (run.json)."""
        done = subprocess.run(
            self.command(*settings), env=self.env, capture_output=True, text=True, check=False
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        (report,) = self.new_reports()
        return report

    def killed_while_training(self) -> None:
        """A night's run whose machine dies once a checkpoint of its training is complete."""
        before = set(self.checkpoints())
        process = subprocess.Popen(
            self.command(), env=self.env, stdout=subprocess.DEVNULL, start_new_session=True
        )
        limit = time.monotonic() + 300
        while set(self.checkpoints()) <= before:
            assert process.poll() is None and time.monotonic() < limit
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert self.new_reports() == []  # nothing of that machine is left to write one

    def checkpoints(self) -> list[str]:
        """Manifests of the complete checkpoints of all training runs."""
        listed = [info.uri for info in self.store.list(f"{self.root}/training/")]
        return [uri for uri in listed if "/checkpoints/" in uri and uri.endswith(MANIFEST_NAME)]

    def new_reports(self) -> list[dict[str, Any]]:
        """The run reports that were written since this was last asked."""
        uris = {info.uri for info in self.store.list(f"{self.root}/run_report/")}
        fresh = {uri for uri in uris - self.reports if uri.endswith("/run.json")}
        self.reports |= uris
        return [json.loads(self.store.get_bytes(uri)) for uri in sorted(fresh)]

    def log(self) -> str:
        """Everything that the newest run's stages said."""
        newest = max((self.workspace / "runs").glob("*.log"), key=lambda path: path.stat().st_mtime)
        return newest.read_text()

    def ledger(self) -> set[str]:
        """Drives whose videos count as used."""
        return {self.names[key] for key in processed(self.store, self.root, MODEL).videos}

    def pointers(self) -> list[Pointer]:
        """Every state of the production pointer, oldest first."""
        return self.registry.history()


@pytest.fixture
def fleet(
    store: ObjectStore, storage_root: str, store_env: dict[str, str], tmp_path: Path
) -> Fleet:
    """A fleet with an empty inbox and nothing in production."""
    return Fleet(store, storage_root, tmp_path, store_env)
