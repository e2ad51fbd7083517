"""The launcher with a real API server, scheduler and pods."""

from __future__ import annotations

import json
import signal
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from components.lib.training_progress import TrainingProgress
from pipelines.backend import cluster

from .conftest import NAMESPACE, Launch, kubectl

Start = Callable[..., Launch]


def job(name: str) -> dict[str, Any] | None:
    """The PyTorchJob of this name, or None."""
    text = kubectl("get", "pytorchjobs", name, "-n", NAMESPACE, "--ignore-not-found", "-o", "json")
    return json.loads(text) if text.strip() else None


def script(code: str) -> list[str]:
    """torchrun runs a module or a file; this module runs code."""
    return ["--no-python", "python", "-c", code]


def test_a_job_succeeds_and_its_lines_are_followed(launch: Start) -> None:
    code = "import time\nfor n in range(3): print('line', n, flush=True); time.sleep(1)"
    run = launch(name="ok-1", command=script(code))
    assert run.wait() == 0, run.text
    for number in range(3):
        assert run.text.count(f"line {number}\n") == 1
    assert "LAUNCHER DONE" in run.text
    kubectl("delete", "pytorchjobs", "ok-1", "-n", NAMESPACE)


def test_pods_are_not_root_and_their_root_is_read_only(launch: Start) -> None:
    code = (
        "import os\nprint('uid', os.getuid(), flush=True)\n"
        "try: open('/opt/x', 'w')\nexcept OSError as e: print('root:', e.strerror, flush=True)\n"
        "open('/tmp/x', 'w').write('1'); open('/dev/shm/x', 'w').write('1')\n"
        "print('token', os.path.exists('/var/run/secrets/kubernetes.io'), flush=True)"
    )
    run = launch(command=script(code))
    assert run.wait() == 0, run.text
    assert "uid 10001" in run.text
    assert "root: Read-only file system" in run.text
    assert "token False" in run.text


def test_a_failing_job_fails_the_step_with_its_last_lines(launch: Start) -> None:
    code = "print('about to fail', flush=True); raise ValueError('the reason')"
    run = launch(command=script(code), restart_policy="Never", backoff_limit=0)
    assert run.wait() == 1
    error = run.text[run.text.index("USER ERROR") :]
    assert "ended with exit code 1" in error
    assert "ValueError: the reason" in error


def test_running_out_of_memory_is_said(launch: Start) -> None:
    code = "x = bytearray(3 << 30); print(len(x))"
    run = launch(command=script(code), memory="300Mi", restart_policy="Never", backoff_limit=0)
    assert run.wait() == 1
    error = run.text[run.text.index("USER ERROR") :]
    assert "ran out of memory (OOMKilled): its limit is 300Mi" in error or (
        "a rank was killed, most likely for its memory" in error
    )


def test_sigterm_deletes_the_job(launch: Start) -> None:
    run = launch(
        name="term-1", command=script("import time; print('up', flush=True); time.sleep(600)")
    )
    run.until("up\n")
    run.kill(signal.SIGTERM)
    assert run.wait(40) == 143, run.text
    end = time.monotonic() + 60
    while job("term-1") is not None:
        assert time.monotonic() < end
        time.sleep(0.5)


def test_a_killed_launcher_attaches_again(launch: Start) -> None:
    code = "import time\nfor n in range(60): print('tick', n, flush=True); time.sleep(0.5)"
    first = launch(name="again-1", command=script(code))
    first.until("tick 5\n")
    first.kill(signal.SIGKILL)
    first.wait(10)
    before = job("again-1")
    second = launch(name="again-1", command=script(code))
    assert second.wait() == 0, second.text
    after = job("again-1")
    assert before and after and before["metadata"]["uid"] == after["metadata"]["uid"]
    assert "attached to PyTorchJob cosmos/again-1, which is running" in second.text
    assert "tick 59\n" in second.text
    kubectl("delete", "pytorchjobs", "again-1", "-n", NAMESPACE)


def test_too_many_gpus_are_said(launch: Start) -> None:
    kubectl("patch", "resourcequota", "cosmos", "-n", NAMESPACE, "-p",
            '{"spec": {"hard": {"requests.nvidia.com/gpu": "64"}}}')  # fmt: skip
    run = launch(gpus_per_node=16, processes_per_node=1, start_timeout_seconds=5)
    assert run.wait(120) == 1
    assert "no node has as many free nvidia.com/gpu as a pod asks for" in run.text
    assert "did not start within" in run.text


def test_a_full_quota_is_said(launch: Start) -> None:
    kubectl("patch", "resourcequota", "cosmos", "-n", NAMESPACE, "-p",
            '{"spec": {"hard": {"requests.nvidia.com/gpu": "4"}}}')  # fmt: skip
    run = launch(gpus_per_node=8, processes_per_node=1, start_timeout_seconds=5)
    assert run.wait(120) == 1
    assert "the resource quota 'cosmos' has 0 of 4 requests.nvidia.com/gpu in use" in run.text


def test_an_image_that_is_not_there_is_said(launch: Start) -> None:
    run = launch(image="registry.invalid/none:1", start_timeout_seconds=8)
    assert run.wait(120) == 1
    assert "the image registry.invalid/none:1 cannot be pulled" in run.text


def test_a_missing_secret_is_said(launch: Start) -> None:
    secret = {"TOKEN": {"secret": "not-there", "key": "token"}}
    run = launch(secret_env=secret, start_timeout_seconds=8)
    assert run.wait(120) == 1
    assert 'secret "not-there" not found. Create what is missing' in run.text


def test_a_deadline_is_said(launch: Start) -> None:
    code = "import time; time.sleep(600)"
    run = launch(command=script(code), active_deadline_seconds=8)
    assert run.wait(120) == 1
    assert "it ran longer than its active deadline of 8 s" in run.text


def test_a_suspended_job_is_reported_and_goes_on_when_it_may(launch: Start) -> None:
    run = launch(name="susp-1", command=script("print('at last', flush=True)"), suspend=True)
    run.until("is suspended")
    kubectl("patch", "pytorchjobs", "susp-1", "-n", NAMESPACE, "--type=merge", "-p",
            '{"spec": {"runPolicy": {"suspend": false}}}')  # fmt: skip
    assert run.wait() == 0, run.text
    assert "at last" in run.text
    kubectl("delete", "pytorchjobs", "susp-1", "-n", NAMESPACE)


def test_the_jobs_of_a_run_are_found_by_its_id(
    launch: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `cosmos-pipelines status` and `cancel` do."""
    run_id = str(uuid.uuid4())
    monkeypatch.setenv("COSMOS_RUN_ID", run_id)
    progress = TrainingProgress(step=3, max_steps=10, loss=0.5, eta_seconds=70)
    code = f"import time; print({progress.line()!r}, flush=True); time.sleep(600)"
    run = launch(name="found-1", command=script(code))
    run.until("step 3/10")
    administrator = cluster.connect(NAMESPACE, print)
    end = time.monotonic() + 60
    while (line := cluster.progress_line(administrator, run_id)) is None:
        assert time.monotonic() < end, run.text
        time.sleep(0.5)
    assert line == "training: step 3/10, loss 0.5, 70 s left"
    assert cluster.delete_jobs(administrator, run_id) == ["found-1"]
    assert run.wait(60) == 1
    assert "was deleted by someone else while it trained" in run.text
