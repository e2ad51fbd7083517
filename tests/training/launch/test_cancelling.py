"""SIGTERM and Ctrl-C delete the job and end the launcher, at whatever moment they come."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from components.training.launch.interface import LaunchRequest
from components.training.launch.pytorchjob import PyTorchJob
from tests.servers.faults import Trouble
from tests.servers.kubernetes import NAMESPACE, FakeKubernetes

# A launcher as a step runs it, with short pauses.
LAUNCHER = """
import gc, os, signal, sys
from components.lib.logs import configure_logging
from components.lib.progress import LineProgress
from components.training.launch.interface import LaunchRequest
from components.training.launch.job import Timing, run_job
from components.training.launch.kube import Cluster
from components.training.launch.pytorchjob import PyTorchJob
configure_logging()
cluster = Cluster.connect(None, LineProgress().log)
cluster.patience_s = 3.0
{before}
request = LaunchRequest.model_validate_json(sys.argv[1])
timing = Timing(poll_s=0.2, log_pause_s=0.1)
run_job(PyTorchJob(), request, LineProgress(), cluster, timing)
"""
# The HTTP library is at work on a look at the pods when the signal comes, in code of its own.
INSIDE = """
from urllib3.connectionpool import HTTPConnectionPool
plain, sent = HTTPConnectionPool.urlopen, []
def terminate():
    sent.append(True)
    os.kill(os.getpid(), signal.SIGTERM)
    sum(range(1000))
def urlopen(self, method, url, *args, **kwargs):
    if "/pods?" in url and not sent:
        {code}
    return plain(self, method, url, *args, **kwargs)
HTTPConnectionPool.urlopen = urlopen
"""
MOMENTS = {
    "except": """
        try:
            terminate()
        except BaseException:
            pass
""",
    "finally": """
        try:
            terminate()
        finally:
            raise OSError("closing the connection failed")
""",
    "finaliser": """
        class Response:
            def __del__(self):
                terminate()
        response = Response()
        del response
        gc.collect()
""",
}
Start = Callable[..., "Launcher"]


class Launcher:
    """The child process."""

    def __init__(self, kubeconfig: Path, request: str, log: Path, before: str) -> None:
        self.log = log
        with log.open("w") as stream:
            self.child = subprocess.Popen(
                [sys.executable, "-c", LAUNCHER.format(before=before), request],
                env={**os.environ, "KUBECONFIG": str(kubeconfig)},
                stdout=stream,
                stderr=subprocess.STDOUT,
            )

    @property
    def text(self) -> str:
        return self.log.read_text()

    def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + 120
        while not condition():
            assert self.child.poll() is None, self.text
            assert time.monotonic() < end, self.text
            time.sleep(0.02)

    def ended(self) -> int:
        """The exit code."""
        try:
            return self.child.wait(120)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the launcher goes on:\n{self.text}") from None


@pytest.fixture
def start(kubernetes: FakeKubernetes, request_: LaunchRequest, tmp_path: Path) -> Iterator[Start]:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "clusters": [{"name": "c", "cluster": {"server": kubernetes.url}}],
                "users": [{"name": "u", "user": {"token": "good"}}],
                "contexts": [
                    {"name": "x", "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}}
                ],
                "current-context": "x",
            }
        )
    )
    started: list[Launcher] = []

    def launch(before: str = "") -> Launcher:
        request = request_.model_dump_json()
        started.append(Launcher(kubeconfig, request, tmp_path / "launcher.log", before))
        return started[-1]

    yield launch
    for launcher in started:
        if launcher.child.poll() is None:
            launcher.child.kill()
            launcher.child.wait()


def running(kubernetes: FakeKubernetes, *log: str) -> Callable[[str], None]:
    """A reaction to a job's creation: it runs."""

    def run(name: str) -> None:
        kubernetes.master(name)
        kubernetes.worker(name)
        kubernetes.log(f"{name}-master-0", *log)
        kubernetes.condition(name, "Running")

    return run


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_cancelled_step_deletes_its_job(
    start: Start, kubernetes: FakeKubernetes, number: signal.Signals, code: int
) -> None:
    kubernetes.on_create(running(kubernetes))
    launcher = start()
    launcher.until(lambda: "is running" in launcher.text)
    launcher.child.send_signal(number)
    assert launcher.ended() == code
    assert not kubernetes.jobs
    assert "cancelled: deleted" in launcher.text
    assert "Traceback" not in launcher.text


@pytest.mark.parametrize("moment", MOMENTS)
def test_no_library_can_swallow_it(start: Start, kubernetes: FakeKubernetes, moment: str) -> None:
    kubernetes.on_create(running(kubernetes))
    launcher = start(INSIDE.format(code=MOMENTS[moment].strip()))
    assert launcher.ended() == 143, launcher.text
    assert not kubernetes.jobs
    assert "cancelled: deleted" in launcher.text


def test_while_the_job_is_being_created(start: Start, kubernetes: FakeKubernetes) -> None:
    """Its creation is on its way; a deletion that overtook it would leave it behind."""
    created: list[str] = []
    kubernetes.on_create(created.append)
    kubernetes.fail("POST", "/pytorchjobs", "slow")
    launcher = start()
    launcher.until(lambda: kubernetes.count("POST", "/pytorchjobs"))
    launcher.child.send_signal(signal.SIGTERM)
    assert launcher.ended() == 143, launcher.text
    while not created:
        time.sleep(0.02)
    assert not kubernetes.jobs


def test_before_there_is_a_job_none_is_created(start: Start, kubernetes: FakeKubernetes) -> None:
    kubernetes.fail("GET", "/pytorchjobs/", "hang")
    launcher = start()
    launcher.until(lambda: kubernetes.count("GET", "/pytorchjobs/"))
    launcher.child.send_signal(signal.SIGTERM)
    assert launcher.ended() == 143, launcher.text
    assert kubernetes.count("POST", "/pytorchjobs") == 0
    assert "cancelled before" in launcher.text


def test_a_retry_that_had_not_looked_yet_deletes_the_earlier_try_s_job(
    start: Start, kubernetes: FakeKubernetes, request_: LaunchRequest
) -> None:
    kubernetes.create("pytorchjobs", PyTorchJob().body(request_))
    kubernetes.fail("GET", "/pytorchjobs/", "hang")
    launcher = start()
    launcher.until(lambda: kubernetes.count("GET", "/pytorchjobs/"))
    launcher.child.send_signal(signal.SIGTERM)
    assert launcher.ended() == 143, launcher.text
    assert not kubernetes.jobs


def test_somebody_else_s_job_is_left_alone(
    start: Start, kubernetes: FakeKubernetes, request_: LaunchRequest
) -> None:
    other = request_.model_copy(update={"nodes": 3})
    kubernetes.create("pytorchjobs", PyTorchJob().body(other))
    kubernetes.fail("GET", "/pytorchjobs/", "hang")
    launcher = start()
    launcher.until(lambda: kubernetes.count("GET", "/pytorchjobs/"))
    launcher.child.send_signal(signal.SIGTERM)
    assert launcher.ended() == 143, launcher.text
    assert kubernetes.job(request_.name)
    assert "other settings (nodes 3 -> 2)" in launcher.text


def test_while_it_waits_for_the_last_lines_of_the_log(
    start: Start, kubernetes: FakeKubernetes
) -> None:
    def succeed(name: str) -> None:
        running(kubernetes, "one")(name)
        kubernetes.condition(name, "Succeeded")

    kubernetes.fail("GET", "/log", "hang", times=1000)
    kubernetes.on_create(succeed)
    launcher = start()
    launcher.until(lambda: "has succeeded" in launcher.text)
    launcher.child.send_signal(signal.SIGTERM)
    assert launcher.ended() == 143, launcher.text
    assert not kubernetes.jobs


@pytest.mark.parametrize("status", [401, 429, 503, "drop", "hang", "login page"])
def test_cancelling_survives_passing_errors(
    start: Start, kubernetes: FakeKubernetes, status: Trouble
) -> None:
    kubernetes.on_create(running(kubernetes))
    kubernetes.fail("DELETE", "pytorchjobs/", status)
    launcher = start("cluster.timeout_s = 1.0")
    launcher.until(lambda: "is running" in launcher.text)
    launcher.child.send_signal(signal.SIGTERM)
    assert launcher.ended() == 143, launcher.text
    assert not kubernetes.jobs
    assert "trying again" in launcher.text
    assert "cancelled: deleted" in launcher.text


def test_an_api_that_is_away_is_said(start: Start, kubernetes: FakeKubernetes) -> None:
    kubernetes.on_create(running(kubernetes))
    kubernetes.fail("DELETE", "pytorchjobs/", 503, times=1000)
    launcher = start()
    launcher.until(lambda: "is running" in launcher.text)
    launcher.child.send_signal(signal.SIGTERM)
    assert launcher.ended() == 143, launcher.text
    assert "was not deleted: The Kubernetes API has not answered DELETE" in launcher.text
