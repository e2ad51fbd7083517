"""What a launch needs in these tests: a fake cluster, an impatient client, a request."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from components.training.launch.interface import LaunchRequest
from components.training.launch.job import Timing
from components.training.launch.kube import Cluster
from tests.conftest import SilentProgress
from tests.servers.kubernetes import NAMESPACE, FakeKubernetes, api_client, fake_kubernetes


@pytest.fixture
def kubernetes() -> Iterator[FakeKubernetes]:
    """A Kubernetes API server in memory."""
    with fake_kubernetes() as fake:
        yield fake


@pytest.fixture
def cluster(kubernetes: FakeKubernetes, progress: SilentProgress) -> Cluster:
    """A client with short pauses."""
    return Cluster(
        api_client(kubernetes.url),
        NAMESPACE,
        progress.log,
        patience_s=20,
        unauthorized_s=1,
        timeout_s=1.0,
        silence_s=1.0,
        sleep=lambda seconds: time.sleep(min(seconds, 0.05)),
    )


@pytest.fixture
def timing() -> Timing:
    """Short looks at everything."""
    return Timing(
        poll_s=0.2, hopeless_s=0.5, image_pull_s=0.5, no_pods_s=0.3, annotate_s=0, log_pause_s=0.1
    )


@pytest.fixture
def request_() -> LaunchRequest:
    """A job of two nodes without GPUs."""
    return LaunchRequest(
        name="cosmos-train-0123456789abcdef0123",
        image="registry.example/train@sha256:" + "0" * 64,
        command=("-m", "components.lib.train", "--yes", "--factory", "tiny_diffusion"),
        nodes=2,
        gpus_per_node=0,
        processes_per_node=1,
        memory="2Gi",
        active_deadline_seconds=3600,
        start_timeout_seconds=60,
    )
