"""What `status`, `logs` and `cancel` see in Kubernetes, through passing errors too."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from components.lib.contract import UserError
from components.training.launch.interface import PROGRESS_ANNOTATION, RUN_LABEL, LaunchRequest
from components.training.launch.kube import Cluster
from components.training.launch.pytorchjob import PyTorchJob
from pipelines import client
from pipelines.backend import cluster
from pipelines.client import Server
from tests.servers.faults import Trouble
from tests.servers.kfp import FakeKfp
from tests.servers.kubernetes import NAMESPACE, FakeKubernetes, api_client, fake_kubernetes

from .test_submit import VIDEOS, invoke

RUN = "0b1c-run"
PASSING: list[Trouble] = [401, 408, 429, 500, 502, 503, 504, "drop", "hang", "login page"]


@pytest.fixture
def kubernetes() -> Iterator[FakeKubernetes]:
    """A Kubernetes API server in memory."""
    with fake_kubernetes() as fake:
        yield fake


@pytest.fixture
def administrator(kubernetes: FakeKubernetes) -> Cluster:
    """A person with access to the namespace, and a patience for tests."""
    return Cluster(
        api_client(kubernetes.url, "admin"),
        NAMESPACE,
        print,
        patience_s=20,
        unauthorized_s=1,
        timeout_s=1.0,
        silence_s=1.0,
        sleep=lambda seconds: time.sleep(min(seconds, 0.05)),
    )


def start(kubernetes: FakeKubernetes, name: str, run: str, annotation: str = "") -> None:
    request = LaunchRequest(name=name, image="i", command=("x",), labels={RUN_LABEL: run})
    body = PyTorchJob().body(request)
    if annotation:
        body["metadata"]["annotations"][PROGRESS_ANNOTATION] = annotation
    kubernetes.create("pytorchjobs", body)


@pytest.mark.parametrize("status", [None, *PASSING])
def test_only_the_jobs_of_the_run_are_deleted(
    kubernetes: FakeKubernetes,
    administrator: Cluster,
    status: Trouble | None,
) -> None:
    start(kubernetes, "mine", RUN)
    start(kubernetes, "of-another-run", "other")
    kubernetes.installed.discard("trainjobs")  # one kind of job is enough
    if status is not None:
        kubernetes.fail("GET", "pytorchjobs", status, times=2)
        kubernetes.fail("DELETE", "pytorchjobs", status, times=2)
    assert cluster.delete_jobs(administrator, RUN) == ["mine"]
    assert [name for _, name in kubernetes.jobs] == ["of-another-run"]


@pytest.mark.parametrize("status", [None, *PASSING])
def test_progress_is_read_from_the_job(
    kubernetes: FakeKubernetes,
    administrator: Cluster,
    status: Trouble | None,
) -> None:
    if status is not None:
        kubernetes.fail("GET", "pytorchjobs", status, times=2)
    assert cluster.progress_line(administrator, RUN) is None
    start(kubernetes, "mine", RUN, '{"step":3,"max_steps":10,"loss":0.5,"eta_seconds":70.0}')
    line = cluster.progress_line(administrator, RUN)
    assert line == "training: step 3/10, loss 0.5, 70 s left"


def test_without_the_right_to_list_that_is_said(kubernetes: FakeKubernetes) -> None:
    step = Cluster(api_client(kubernetes.url, "good"), NAMESPACE, print)
    with pytest.raises(UserError, match=r'forbidden: User .* cannot list resource "pytorchjobs"'):
        cluster.progress_line(step, RUN)


def test_the_log_is_that_of_the_working_pod(
    kubernetes: FakeKubernetes,
    administrator: Cluster,
) -> None:
    """KFP lists a driver's pod too; one that is gone or has not started is passed over."""
    kubernetes.pod("worker", {}, "Succeeded")
    kubernetes.pod("waits", {}, "Pending")
    kubernetes.log("worker", "one", "two", "three")
    pods = ("worker", "waits", "gone")
    assert list(cluster.step_log(administrator, pods, False, 2)) == ["two", "three"]
    assert list(cluster.step_log(administrator, pods, True, 2)) == ["one", "two", "three"]
    with pytest.raises(UserError, match="pod is not there any more"):
        list(cluster.step_log(administrator, ("gone",), False, 2))


@pytest.mark.parametrize("status", ["drop", "hang", 500])
def test_a_followed_log_survives_broken_streams(
    kubernetes: FakeKubernetes,
    administrator: Cluster,
    status: Trouble,
) -> None:
    kubernetes.pod("worker", {}, "Running")
    kubernetes.log("worker", "one", "two<cut>", "three")
    lines = cluster.step_log(administrator, ("worker",), True, 9)
    seen = [next(lines), next(lines)]
    kubernetes.fail("GET", "/log", status)
    seen.append(next(lines))
    kubernetes.pod("worker", {}, "Succeeded")
    assert [*seen, *lines] == ["one", "two", "three"]


def test_logs_take_the_step_that_failed(
    kubernetes: FakeKubernetes,
    administrator: Cluster,
    kfp_server: FakeKfp,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster, "connect", lambda *_arguments: administrator)
    run = client.submit(server, "tokenizer", VIDEOS)
    with pytest.raises(UserError, match=r"No step of run .* has started yet"):
        client.logs(server, run.run_id)
    kfp_server.tasks(run.run_id, discover="SUCCEEDED", train="FAILED", report="RUNNING")
    kubernetes.pod("pod-train", {}, "Failed")
    kubernetes.log("pod-train", "ValueError: the reason")
    step, lines = client.logs(server, run.run_id)
    assert (step, list(lines)) == ("train", ["ValueError: the reason"])
    shown = invoke("logs", run.run_id, "train", "--tail", "1")
    assert "ValueError: the reason" in shown.output
