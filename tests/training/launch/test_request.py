"""What the training stage asks of a launcher."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components.harness.overrides import make_config
from components.lib.contract import UserError
from components.lib.train.settings.config import DiffusionTrainingConfig
from components.training.launch.interface import LaunchRequest
from components.training.launch.pytorchjob import PyTorchJob
from components.training.stage import launch_request

MANIFESTS = {"checkpoint": "s3://b/c", "data": "s3://b/d", "prompts": "s3://b/p"}


def request(*overrides: str, **fields: object) -> LaunchRequest:
    values = {**MANIFESTS, "launcher": "pytorchjob", "image": "train@sha256:1", **fields}
    config: Any = make_config("training", values, overrides)
    output: Any = SimpleNamespace(uri=f"s3://b/training/{'ab' * 32}/", scratch=Path("/scratch"))
    return launch_request(config, output, ["a=b"], DiffusionTrainingConfig())


def test_a_job_with_gpus_tolerates_their_nodes_taint() -> None:
    asked = request()
    assert asked.gpus_per_node == asked.processes_per_node == 8
    assert [item.key for item in asked.tolerations] == ["nvidia.com/gpu"]
    assert asked.node_selector == {}
    assert request(gpus_per_node=0).tolerations == ()


def test_the_kind_of_gpu_comes_with_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSMOS_GPU_TYPE", "NVIDIA-H100-80GB-HBM3")
    pod = PyTorchJob().body(request())["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert request("training.job.node_selector={pool: a}").node_selector == {"pool": "a"}
    assert request(gpus_per_node=0).node_selector == {}


def test_the_options_of_a_job_are_overrides() -> None:
    asked = request("training.job.queue=training", "training.job.memory=64Gi", "training.nodes=4")
    assert (asked.queue, asked.memory, asked.nodes) == ("training", "64Gi", 4)
    assert asked.name == "cosmos-train-abababababababababab"
    with pytest.raises(UserError, match=r"field 'job'.*quue"):
        request("training.job.quue=x")


def test_secrets_are_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-write-me")
    text = request().model_dump_json()
    assert "do-not-write-me" not in text
    assert request().secret_env["AWS_SECRET_ACCESS_KEY"].secret == "cosmos-s3"
