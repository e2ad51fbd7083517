"""One master and one worker really train the tiny DiT with gloo, in pods from our image."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from components.lib.manifest import Manifest
from components.lib.store import ObjectStore
from components.lib.store.embedded import EmbeddedStore

from .kubectl import NAMESPACE, ROOT, kubectl

STEPS = 24
Stage = Callable[..., "Running"]


class Running:
    """`cosmos-pipelines stage training` in a child process."""

    def __init__(self, config: Path, env: dict[str, str]) -> None:
        self.log = config.with_suffix(".log")
        with self.log.open("w") as stream:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "pipelines.cli", "stage", "training", "-c", str(config)],
                env=env,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
            )

    @property
    def text(self) -> str:
        return self.log.read_text()

    def until(self, condition: Callable[[str], bool], seconds: float = 240) -> None:
        end = time.monotonic() + seconds
        while not condition(self.text):
            assert self.child.poll() is None, self.text
            assert time.monotonic() < end, self.text
            time.sleep(0.2)


@pytest.fixture
def stage(
    training_inputs: dict[str, str],
    account_config: Path,
    embedded_store: EmbeddedStore,
    image: str,
    tmp_path: Path,
) -> Stage:
    """Start the stage with the PyTorchJob launcher; outputs go under a folder of their own."""

    def start(folder: str) -> Running:
        config = {
            **training_inputs,
            "storage_root": f"{training_inputs['storage_root']}/{folder}",
            "factory": "tiny_diffusion",
            "overrides": [
                f"trainer.max_steps={STEPS}",
                f"trainer.val_check_interval={STEPS}",
                "log.ckpt.every_n_train_steps=4",
            ],
            "nproc": 1,
            "nodes": 2,
            "launcher": "pytorchjob",
            "image": image,
            "gpus_per_node": 0,
            "grace_seconds": 3,
            "job": {
                "namespace": NAMESPACE,
                "cpu": "100m",
                "memory": "2500Mi",
                "shared_memory": "256Mi",
                "scratch": "2Gi",
                "env": {"OMP_NUM_THREADS": "1"},
                "delete_on_success": True,
            },
        }
        path = tmp_path / f"{folder}.yaml"
        path.write_text(yaml.safe_dump(config))
        env = {**os.environ, **embedded_store.env, "KUBECONFIG": str(account_config)}
        return Running(path, env)

    return start


def losses(store: ObjectStore, running: Running) -> dict[int, float]:
    """Step -> training loss of a finished stage, from the manifest that it printed."""
    assert running.child.wait(400) == 0, running.text
    uri = next(line for line in reversed(running.text.split()) if line.startswith("s3://"))
    manifest = Manifest.model_validate_json(store.get_bytes(uri))
    text = store.get_bytes(manifest.file_uri("metrics.jsonl")).decode()
    records = [json.loads(line) for line in text.splitlines()]
    return {r["step"]: r["loss"] for r in records if r["split"] == "train"}


@pytest.mark.timeout(1500)
def test_training_on_two_pods_survives_the_loss_of_one(
    stage: Stage, cluster_store: ObjectStore
) -> None:
    calm = stage("calm")
    undisturbed = losses(cluster_store, calm)
    assert sorted(undisturbed) == list(range(1, STEPS + 1))
    first, last = undisturbed[1], undisturbed[STEPS]
    assert last < first
    assert "created PyTorchJob" in calm.text and "2 x 1 ranks" in calm.text

    shaken = stage("shaken")
    config = yaml.safe_load(shaken.log.with_suffix(".yaml").read_text())

    def checkpoint_written(_text: str) -> bool:
        found = cluster_store.list(f"{config['storage_root']}/training/")
        return any("/checkpoints/step-00000008/" in info.uri for info in found)

    shaken.until(checkpoint_written)
    names = kubectl("get", "pods", "-n", NAMESPACE, "-o", "name").split()
    worker = next(name for name in names if "-worker-0" in name)
    assert worker.startswith("pod/cosmos-train-")
    kubectl("delete", "-n", NAMESPACE, worker, "--wait=false", "--grace-period=1")
    resumed = losses(cluster_store, shaken)
    assert sorted(resumed) == sorted(undisturbed)
    for step, loss in undisturbed.items():
        assert resumed[step] == pytest.approx(loss, rel=1e-5), step
    assert "restart" in shaken.text
