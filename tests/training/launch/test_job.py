"""What a user of the launcher relies on: failures fail, retries re-attach, cancelling deletes."""

import threading
import time
from typing import Any

import pytest

from components.lib.contract import UserError
from components.lib.logs import LINE_MARK
from components.lib.training_progress import TrainingProgress
from components.training.launch import explain
from components.training.launch.interface import PROGRESS_ANNOTATION
from components.training.launch.job import run_job
from components.training.launch.pytorchjob import PyTorchJob
from components.training.launch.trainjob import TrainJob


@pytest.fixture
def launch(request_: Any, lines: Any, cluster: Any, timing: Any) -> Any:
    """Run the request; keyword arguments change it."""

    def run(backend: Any = None, **changes: Any) -> None:
        request = request_.model_copy(update=changes)
        run_job(backend or PyTorchJob(), request, lines, cluster, timing)

    return run


def succeed(kubernetes: Any, name: Any, *log: Any) -> None:
    kubernetes.master(name)
    kubernetes.worker(name)
    kubernetes.condition(name, "Running", f"PyTorchJob {name} is running.")
    kubernetes.log(f"{name}-master-0", *log)
    kubernetes.master(name, "Succeeded")
    kubernetes.worker(name, phase="Succeeded")
    kubernetes.condition(name, "Succeeded", "done")


def terminated(code: Any, reason: Any = "Error", finished: Any = "2026-01-01T00:00:10Z") -> Any:
    return {"terminated": {"exitCode": code, "reason": reason, "finishedAt": finished}}


AT_3 = TrainingProgress(step=3, max_steps=10, loss=0.5, eta_seconds=70)


def container(state: Any, restarts: Any = 0, **more: Any) -> Any:
    return [{"name": "pytorch", "image": "i", "state": state, "restartCount": restarts, **more}]


def test_success_streams_rank_0_and_records_progress(
    launch: Any, kubernetes: Any, lines: Any, request_: Any
) -> None:
    kubernetes.on_create(lambda name: succeed(kubernetes, name, "loading", AT_3.line()))
    launch()
    assert lines.lines.count("loading") == 1
    assert lines.lines.count("step 3/10, loss 0.5, 70 s left") == 1
    annotation = kubernetes.job(request_.name)["metadata"]["annotations"][PROGRESS_ANNOTATION]
    assert annotation == '{"step":3,"max_steps":10,"loss":0.5,"eta_seconds":70.0}'


def test_a_failed_job_fails_the_step_with_the_container_s_last_lines(
    launch: Any, kubernetes: Any
) -> None:
    def fail(name: Any) -> None:
        kubernetes.log(f"{name}-master-0", *[f"line {i}" for i in range(30)], "ValueError: bad lr")
        kubernetes.master(name, "Failed", containerStatuses=container(terminated(1)))
        kubernetes.condition(name, "Failed", "PyTorchJob is failed because 1 Master failed.")

    kubernetes.on_create(fail)
    with pytest.raises(UserError) as error:
        launch()
    text = str(error.value)
    assert "master-0 ended with exit code 1" in text
    assert text.endswith("| ValueError: bad lr")
    assert "line 12" in text and "line 5\n" not in text


def test_the_rank_that_brought_the_others_down_is_named(launch: Any, kubernetes: Any) -> None:
    """A worker out of memory is the cause; the master only loses its peer."""

    def fail(name: Any) -> None:
        kubernetes.log(f"{name}-master-0", "RuntimeError: connection closed by peer")
        kubernetes.log(f"{name}-worker-0", "epoch 1")
        kubernetes.master(name, "Failed", containerStatuses=container(terminated(1)))
        oom = terminated(137, "OOMKilled", "2026-01-01T00:00:11Z")
        kubernetes.worker(name, phase="Failed", containerStatuses=container(oom))
        kubernetes.condition(name, "Failed", "failed")

    kubernetes.on_create(fail)
    with pytest.raises(UserError, match=r"worker-0 ran out of memory \(OOMKilled\).*2Gi"):
        launch()


def test_a_restarted_container_is_told_once_and_training_goes_on(
    launch: Any, kubernetes: Any, lines: Any
) -> None:
    def crash_and_recover(name: Any) -> None:
        ready: dict[str, Any] = {"running": {}}
        last = terminated(1)
        kubernetes.log(f"{name}-worker-0 previous", "gloo: connection reset")
        kubernetes.worker(name, containerStatuses=container(ready, 1, lastState=last))
        kubernetes.master(name, containerStatuses=container(ready))
        kubernetes.condition(name, "Restarting", "1 worker failed")
        time.sleep(0.6)
        succeed(kubernetes, name, "resumed")

    kubernetes.on_create(crash_and_recover)
    launch()
    told = [line for line in lines.lines if "ended with exit code 1" in line]
    assert len(told) == 1
    assert "gloo: connection reset" in told[0]


def test_a_retry_attaches_to_the_running_job(
    launch: Any, kubernetes: Any, lines: Any, request_: Any
) -> None:
    kubernetes.create("pytorchjobs", PyTorchJob().body(request_))
    threading.Timer(0.3, succeed, (kubernetes, request_.name, "step 9")).start()
    launch()
    assert kubernetes.count("POST", "pytorchjobs") == 0
    assert "attached to" in lines.text


def test_a_success_whose_results_were_removed_is_trained_again(
    launch: Any, kubernetes: Any, request_: Any, lines: Any
) -> None:
    """The stage asks for a launch only while the run's results are missing."""
    kubernetes.create("pytorchjobs", PyTorchJob().body(request_))
    succeed(kubernetes, request_.name)
    kubernetes.on_create(lambda name: succeed(kubernetes, name, "once more"))
    launch()
    assert "once more" in lines.lines


def test_a_retry_replaces_a_failed_job(
    launch: Any, kubernetes: Any, request_: Any, lines: Any
) -> None:
    kubernetes.create("pytorchjobs", PyTorchJob().body(request_))
    kubernetes.condition(request_.name, "Failed", "out of luck")
    kubernetes.on_create(lambda name: succeed(kubernetes, name, "resumed"))
    launch()
    assert "replacing" in lines.text and "out of luck" in lines.text
    assert kubernetes.job(request_.name)["status"]["conditions"][-1]["type"] == "Succeeded"


def test_other_settings_for_a_running_job_are_named(
    launch: Any, kubernetes: Any, request_: Any
) -> None:
    kubernetes.create("pytorchjobs", PyTorchJob().body(request_))
    kubernetes.condition(request_.name, "Running")
    with pytest.raises(UserError, match=r"other settings \(nodes 2 -> 3"):
        launch(nodes=3)
    assert kubernetes.job(request_.name)


def test_a_foreign_job_of_that_name_is_left_alone(
    launch: Any, kubernetes: Any, request_: Any
) -> None:
    body = PyTorchJob().body(request_)
    body["metadata"]["annotations"] = {}
    kubernetes.create("pytorchjobs", body)
    with pytest.raises(UserError, match="was not made by this launcher"):
        launch()


def test_a_job_deleted_by_someone_else_is_an_error(
    launch: Any, kubernetes: Any, request_: Any
) -> None:
    def remove(name: Any) -> None:
        kubernetes.condition(name, "Running")
        time.sleep(0.3)
        kubernetes.delete("pytorchjobs", name)

    kubernetes.on_create(remove)
    with pytest.raises(UserError, match="was deleted by someone else"):
        launch()


def test_deadline_exceeded_is_said_in_words(launch: Any, kubernetes: Any) -> None:
    message = "Job x has failed because it was active longer than specified deadline"
    kubernetes.on_create(lambda name: kubernetes.condition(name, "Failed", message))
    with pytest.raises(UserError, match="ran longer than its active deadline of 3600 s"):
        launch()


def test_a_suspended_job_is_reported_and_waited_for(
    launch: Any, kubernetes: Any, lines: Any
) -> None:
    def suspend(name: Any) -> None:
        kubernetes.condition(name, "Suspended", "PyTorchJob is suspended.")
        time.sleep(0.8)
        succeed(kubernetes, name, "done")

    kubernetes.on_create(suspend)
    launch(queue="training", start_timeout_seconds=1)
    assert "is suspended: it waits for quota in the Kueue queue 'training'" in lines.text


def test_success_can_remove_the_job(launch: Any, kubernetes: Any) -> None:
    kubernetes.on_create(lambda name: succeed(kubernetes, name))
    launch(delete_on_success=True)
    assert not kubernetes.jobs


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (
            {
                "conditions": [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
                    }
                ]
            },
            r"no node has as many free nvidia.com/gpu as a pod asks for; lower gpus_per_node",
        ),
        (
            {"containerStatuses": container({"waiting": {"reason": "ImagePullBackOff",
                                                         "message": "Back-off pulling."}})},
            r"the image i cannot be pulled: Back-off pulling. Check its name",
        ),
        (
            {"containerStatuses": container({"waiting": {"reason": "CreateContainerConfigError",
                                                         "message": 'secret "w" not found'}})},
            r'secret "w" not found. Create what is missing',
        ),
    ],
)  # fmt: skip
def test_a_job_that_cannot_start_says_why_and_is_deleted(
    launch: Any, kubernetes: Any, status: Any, words: Any
) -> None:
    kubernetes.on_create(lambda name: kubernetes.master(name, "Pending", **status))
    with pytest.raises(UserError, match=words):
        launch(nodes=1, start_timeout_seconds=1)
    assert not kubernetes.jobs


def test_a_full_quota_is_named(launch: Any, kubernetes: Any) -> None:
    kubernetes.quotas.append(
        {
            "metadata": {"name": "team"},
            "status": {
                "hard": {"requests.nvidia.com/gpu": "8", "requests.memory": "1Ti"},
                "used": {"requests.nvidia.com/gpu": "6", "requests.memory": "64Gi"},
            },
        }
    )
    with pytest.raises(UserError, match=r"quota 'team' has 6 of 8 requests.nvidia.com/gpu in use"):
        launch(gpus_per_node=4, processes_per_node=None, start_timeout_seconds=1)


def test_without_an_operator_that_is_said(launch: Any, kubernetes: Any) -> None:
    with pytest.raises(UserError, match="Check that the operator for PyTorchJobs runs"):
        launch(start_timeout_seconds=1)


def test_a_trainjob_is_followed_in_the_same_way(launch: Any, kubernetes: Any, lines: Any) -> None:
    def train(name: Any) -> None:
        labels = {
            "jobset.sigs.k8s.io/jobset-name": name,
            "jobset.sigs.k8s.io/replicatedjob-name": "node",
        }
        index = "batch.kubernetes.io/job-completion-index"
        kubernetes.pod(f"{name}-node-0-1-b", {**labels, index: "1"})
        kubernetes.pod(f"{name}-node-0-0-a", {**labels, index: "0"})
        kubernetes.log(f"{name}-node-0-0-a", "rank 0 speaks")
        kubernetes.log(f"{name}-node-0-1-b", "rank 1 speaks")
        time.sleep(0.5)
        for pod in kubernetes.pods.values():
            pod["status"]["phase"] = "Succeeded"
        kubernetes.condition(name, "Complete", "jobset completed")

    kubernetes.on_create(train)
    launch(TrainJob())
    assert "rank 0 speaks" in lines.lines
    assert "rank 1 speaks" not in lines.lines


def test_a_failed_trainjob_fails_the_step(launch: Any, kubernetes: Any) -> None:
    kubernetes.on_create(
        lambda name: kubernetes.condition(name, "Failed", "jobset failed", "DeadlineExceeded")
    )
    with pytest.raises(UserError, match="active deadline of 3600 s"):
        launch(TrainJob())


def test_torchrun_s_epilogue_does_not_bury_the_reason() -> None:
    text = (
        "step 1\nTraceback (most recent call last):\nValueError: the reason\n"
        "E1124 12:49:00.1 7 torch/distributed/elastic/multiprocessing/api.py:984] failed "
        "(exitcode: 1) local_rank: 0\nTraceback (most recent call last):\n"
        + "  File torchrun\n"
        * 40
    )
    assert explain.last_lines(text, 20).endswith("ValueError: the reason")
    assert explain.last_lines("one\ntwo\nthree", 2) == "two\nthree"


def test_a_rank_killed_under_torchrun_points_to_memory(launch: Any, kubernetes: Any) -> None:
    def fail(name: str) -> None:
        kubernetes.log(
            f"{name}-master-0",
            "allocating",
            "E1124 torch/distributed/elastic/multiprocessing/api.py:9] failed (exitcode: -9) rank",
        )
        kubernetes.master(name, "Failed", containerStatuses=container(terminated(1)))
        kubernetes.condition(name, "Failed", "failed")

    kubernetes.on_create(fail)
    with pytest.raises(UserError, match=r"a rank was killed, most likely for its memory"):
        launch()


def test_the_clock_of_the_ranks_lines_is_not_repeated(
    launch: Any, kubernetes: Any, lines: Any
) -> None:
    kubernetes.on_create(lambda name: succeed(kubernetes, name, f"{LINE_MARK}12:00:01 step 1"))
    launch()
    assert "step 1" in lines.lines
