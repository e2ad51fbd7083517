"""No poll loop dies of a passing error; final answers become sentences that say what to do."""

import threading
import time
from collections.abc import Callable

import pytest

from components.lib.contract import UserError
from components.lib.training_progress import TrainingProgress
from components.training.launch.interface import LaunchRequest
from components.training.launch.job import Timing, run_job
from components.training.launch.kube import Cluster
from components.training.launch.pytorchjob import PyTorchJob
from tests.conftest import SilentProgress
from tests.servers.faults import Trouble
from tests.servers.kubernetes import FakeKubernetes, api_client
from tests.servers.loopback import Json

Launch = Callable[[], None]


def succeed(kubernetes: FakeKubernetes, name: str) -> None:
    kubernetes.master(name)
    kubernetes.worker(name)
    kubernetes.condition(name, "Running")
    kubernetes.log(f"{name}-master-0", "one", "two<cut>", "three")
    time.sleep(0.6)  # several looks at the job, and time for a request that hangs
    kubernetes.master(name, "Succeeded")
    kubernetes.condition(name, "Succeeded")


@pytest.fixture
def launch(
    request_: LaunchRequest, progress: SilentProgress, cluster: Cluster, timing: Timing
) -> Launch:
    return lambda: run_job(PyTorchJob(), request_, progress, cluster, timing)


PASSING: list[Trouble] = [401, 408, 410, 429, 500, 502, 503, 504, "drop", "hang", "login page"]


@pytest.mark.parametrize("status", PASSING)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", r"pytorchjobs/"),
        ("GET", r"/pods\?"),
        ("POST", r"/pytorchjobs"),
    ],
)
def test_passing_errors_pass(
    launch: Launch,
    kubernetes: FakeKubernetes,
    progress: SilentProgress,
    method: str,
    path: str,
    status: Trouble,
) -> None:
    def end(name: str) -> None:
        kubernetes.master(name, "Succeeded")
        kubernetes.condition(name, "Succeeded")

    kubernetes.on_create(end)
    kubernetes.fail(method, path, status, times=2)
    launch()
    assert "trying again" in progress.text


@pytest.mark.parametrize("status", [401, 403, 404, 410, 429, 500, "drop", "hang", "login page"])
def test_a_watch_that_does_not_work_only_makes_it_slower(
    launch: Launch, kubernetes: FakeKubernetes, status: Trouble
) -> None:
    kubernetes.on_create(lambda name: succeed(kubernetes, name))
    kubernetes.fail("GET", "watch=true", status, times=1000)
    launch()


def test_a_watch_that_reports_an_expired_version_is_opened_again(
    launch: Launch, kubernetes: FakeKubernetes
) -> None:
    kubernetes.on_create(lambda name: succeed(kubernetes, name))
    kubernetes.watch_errors = 2
    launch()
    assert kubernetes.watch_errors == 0
    assert kubernetes.count("GET", "watch=true") > 2


@pytest.mark.parametrize("status", [401, 403, 404, 410, 429, 500, "drop", "hang", "login page"])
def test_a_log_that_cannot_be_read_does_not_stop_training(
    launch: Launch, kubernetes: FakeKubernetes, status: Trouble
) -> None:
    kubernetes.on_create(lambda name: succeed(kubernetes, name))
    kubernetes.fail("GET", r"/log", status, times=1000)
    launch()
    assert kubernetes.count("GET", "/log") > 0


def test_a_dropped_log_stream_loses_and_repeats_nothing(
    launch: Launch, kubernetes: FakeKubernetes, progress: SilentProgress
) -> None:
    kubernetes.on_create(lambda name: succeed(kubernetes, name))
    kubernetes.fail("GET", r"/log", 500)
    launch()
    assert [line for line in progress.lines if line in ("one", "two", "three")] == [
        "one",
        "two",
        "three",
    ]


def test_an_annotation_that_is_refused_does_not_stop_training(
    launch: Launch, kubernetes: FakeKubernetes
) -> None:
    def run(name: str) -> None:
        kubernetes.log(f"{name}-master-0", TrainingProgress(step=1, loss=0.5).line())
        succeed(kubernetes, name)

    kubernetes.on_create(run)
    kubernetes.fail("PATCH", "pytorchjobs", 403, times=1000)
    launch()
    assert kubernetes.count("PATCH", "pytorchjobs") > 0


def test_retry_after_is_respected(
    request_: LaunchRequest,
    progress: SilentProgress,
    cluster: Cluster,
    kubernetes: FakeKubernetes,
    timing: Timing,
) -> None:
    pauses: list[float] = []
    cluster.sleep = pauses.append
    kubernetes.fail("GET", "pytorchjobs/", 429, headers={"Retry-After": "7"})
    cluster.get("kubeflow.org", "v1", "pytorchjobs", "x")
    assert pauses == [7.0]


def test_missing_rights_name_the_role(launch: Launch, kubernetes: FakeKubernetes) -> None:
    kubernetes.fail("POST", "pytorchjobs", 403, message='User "x" cannot create resource')
    with pytest.raises(UserError, match=r"cannot create resource.*Role 'cosmos-launcher'"):
        launch()


def test_an_exceeded_quota_at_creation_is_a_quota_problem(
    launch: Launch, kubernetes: FakeKubernetes
) -> None:
    kubernetes.fail("POST", "pytorchjobs", 403, message="exceeded quota: team, used: 8")
    with pytest.raises(UserError, match=r"quota refuses it: .*exceeded quota: team"):
        launch()


def test_a_missing_crd_is_said(launch: Launch, kubernetes: FakeKubernetes) -> None:
    kubernetes.installed.clear()
    with pytest.raises(UserError, match=r"knows no 'pytorchjobs'.*Install the operator"):
        launch()


def test_bad_credentials_are_said_after_a_while(
    request_: LaunchRequest,
    progress: SilentProgress,
    cluster: Cluster,
    kubernetes: FakeKubernetes,
    timing: Timing,
) -> None:
    cluster.api = api_client(kubernetes.url, token="stale")
    with pytest.raises(UserError, match="does not accept the credentials"):
        run_job(PyTorchJob(), request_, progress, cluster, timing)


def test_a_rotated_token_is_read_again(
    request_: LaunchRequest,
    progress: SilentProgress,
    cluster: Cluster,
    kubernetes: FakeKubernetes,
    timing: Timing,
) -> None:
    kubernetes.on_create(lambda name: kubernetes.condition(name, "Succeeded"))
    cluster.api = api_client(kubernetes.url, token="stale")
    cluster.reload = lambda: api_client(kubernetes.url)
    run_job(PyTorchJob(), request_, progress, cluster, timing)


def test_a_long_outage_says_that_the_job_goes_on(
    cluster: Cluster, kubernetes: FakeKubernetes
) -> None:
    cluster.patience_s = 0.5
    kubernetes.fail("GET", "pytorchjobs/", 503, times=1000)
    with pytest.raises(UserError, match=r"has not answered.*A job that runs goes on"):
        cluster.get("kubeflow.org", "v1", "pytorchjobs", "x")


def test_two_creators_end_up_with_one_job(
    request_: LaunchRequest,
    progress: SilentProgress,
    cluster: Cluster,
    kubernetes: FakeKubernetes,
    timing: Timing,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A create whose answer was lost, or another launcher that was quicker, is a 409."""
    original = kubernetes.get
    first: list[bool] = []

    def nothing_yet(plural: str, name: str) -> Json:
        if not first:
            first.append(True)
            threading.Thread(target=kubernetes.create, args=(plural, body)).start()
            time.sleep(0.2)
            kubernetes.condition(name, "Running")
            threading.Timer(0.5, kubernetes.condition, (name, "Succeeded")).start()
            job = kubernetes.jobs.pop((plural, name))
            try:
                return original(plural, name)
            finally:
                kubernetes.jobs[plural, name] = job
        return original(plural, name)

    body = PyTorchJob().body(request_)
    monkeypatch.setattr(kubernetes, "get", nothing_yet)
    run_job(PyTorchJob(), request_, progress, cluster, timing)
    assert len(kubernetes.jobs) == 1
    assert "attached to" in progress.text
