"""Starting runs when videos arrive: the loop's decisions, and the command with store and KFP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.lib.contract import UserError
from components.lib.store import ObjectStore
from components.lib.store.errors import StoreError
from pipelines.backend.trigger import MAX_FAILURES, Limits, poll
from tests.servers.kfp import FakeKfp

CLI = str(Path(sys.executable).parent / "cosmos-pipelines")


class Script:
    """A watch whose looks are written down beforehand, with a clock that only sleeping moves."""

    def __init__(self, *looks: int | Exception) -> None:
        self.looks, self.run, self.now = list(looks), "", 0.0
        self.taken: list[str] = []
        self.lines: list[str] = []
        self.pauses: list[float] = []

    def look(self) -> int:
        found = self.looks.pop(0) if self.looks else 0
        if isinstance(found, Exception):
            raise found
        return found

    def take(self, run: str) -> None:
        self.run = run
        self.taken.append(run)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def poll(
        self, start: Callable[[], str], going: Callable[[str], bool] = lambda _run: False,
        **limits: Any,
    ) -> int:  # fmt: skip
        return poll(
            self, start, going, self.lines.append, Limits(every_s=10, **limits),
            sleep=self.sleep, clock=lambda: self.now,
        )  # fmt: skip


def starts(*answers: str | Exception) -> Callable[[], str]:
    given = list(answers)

    def start() -> str:
        answer = given.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return start


def test_runs_start_when_objects_are_ready_and_the_limit_ends_it() -> None:
    script = Script(0, 3, 0, 2, 9)
    assert script.poll(starts("one", "two"), max_runs=2) == 2
    assert script.taken == ["one", "two"]
    assert script.pauses == [10, 10, 10]
    assert script.lines == ["3 new objects: starting a run", "2 new objects: starting a run"]


def test_the_time_limit_is_kept_to_the_second() -> None:
    script = Script()
    assert script.poll(starts(), for_s=25) == 0
    assert script.pauses == [10, 10, 5]


def test_a_store_that_fails_is_survived_and_said_once() -> None:
    down = StoreError("the store is down")
    script = Script(down, down, down, 1)
    assert script.poll(starts("run"), max_runs=1) == 1
    assert script.lines == [
        "cannot look now: the store is down",
        "the store answers again",
        "1 new objects: starting a run",
    ]


def test_no_run_starts_while_the_last_one_is_going() -> None:
    script = Script(1, 1, 1)
    states = iter([True, False])
    script.run = "before"
    assert script.poll(starts("run"), going=lambda _run: next(states), max_runs=1) == 1
    assert script.pauses == [10]


def test_a_start_that_fails_is_tried_again_with_growing_pauses() -> None:
    script = Script(1, 1, 1)
    trouble = UserError("KFP is away")
    assert script.poll(starts(trouble, trouble, "run"), max_runs=1) == 1
    assert script.pauses == [20, 40]
    assert script.taken == ["run"]


def test_starts_that_keep_failing_end_it() -> None:
    script = Script(*[1] * 9)
    with pytest.raises(UserError, match=f"{MAX_FAILURES} runs in a row failed; the last: no"):
        script.poll(starts(*[UserError("no")] * 9))
    assert len(script.pauses) == MAX_FAILURES - 1


def trigger(*arguments: str, env: dict[str, str]) -> subprocess.Popen[str]:
    command = [CLI, "trigger", "fleet-tokenizer", "--every", "0.2", "--settle", "0.5", *arguments]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def test_an_upload_starts_a_run_on_the_cluster(
    kfp_server: FakeKfp, store: ObjectStore, storage_root: str, store_env: dict[str, str]
) -> None:
    env = {**os.environ, **store_env}
    inbox = f"{storage_root}/inbox"
    arguments = (
        "--on-bucket", inbox, "--endpoint", kfp_server.url, "--max-runs", "1",
        "-p", f"storage_root={storage_root}", "-p", "min_new_videos=1", "--gpu-type", "NVIDIA-L40S",
    )  # fmt: skip
    process = trigger(*arguments, env=env)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().endswith(f"watching {inbox}/\n")
        time.sleep(1)
        assert kfp_server.runs == {}
        store.put_bytes(f"{inbox}/drive=1/a.mp4", b"a video")
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "1 new objects: starting a run" in output and "done: 1 runs started" in output
    (run,) = kfp_server.runs.values()
    assert run["runtime_config"]["parameters"] == {
        "videos": inbox, "storage_root": storage_root, "min_new_videos": 1,
    }  # fmt: skip
    reference = run["pipeline_version_reference"]["pipeline_version_id"]
    spec = kfp_server.versions[reference]["pipeline_spec"]
    training = spec["deploymentSpec"]["executors"]["exec-training"]["container"]
    assert {"name": "COSMOS_GPU_TYPE", "value": "NVIDIA-L40S"} in training["env"]
    (memory,) = [info.uri for info in store.list(f"{storage_root}/triggers/")]
    assert json.loads(store.get_bytes(memory))["run"] == run["run_id"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_cleanly_when_asked(
    kfp_server: FakeKfp, storage_root: str, store_env: dict[str, str], how: signal.Signals
) -> None:
    process = trigger(
        "--on-bucket", f"{storage_root}/inbox", "--endpoint", kfp_server.url,
        "-p", f"storage_root={storage_root}", env={**os.environ, **store_env},
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.5)
    process.send_signal(how)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert output.endswith("stopped\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--on-bucket", "/tmp/x"), "is no prefix of a bucket"),
        (("--on-bucket", "s3://b/x", "-p", "vidoes=s3://b"), "Did you mean 'videos'"),
        (("--on-bucket", "s3://b/x", "-s", "trainig.nproc=1"), "Did you mean 'training'"),
        (("--on-bucket", "s3://b/x", "--local", "--gpu-type", "L40S"), "nodes of a cluster"),
    ],
)
def test_mistakes_are_named_before_the_watching_begins(
    arguments: tuple[str, ...], sentence: str
) -> None:
    command = [CLI, "trigger", "fleet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert sentence in done.stderr


def test_a_run_on_this_machine_is_started_too(
    store: ObjectStore, storage_root: str, store_env: dict[str, str], tmp_path: Path,
    clips: dict[str, Path],
) -> None:  # fmt: skip
    """One video is below min_new_videos, so the run ends after discovery; it is a run all the
    same, with a report, and the trigger does not start another for the same upload."""
    made = tmp_path / "checkpoints" / "tiny" / "complete.json"
    made.parent.mkdir(parents=True)
    made.write_text("{}")  # they are not needed: nothing is trained
    inbox = f"{storage_root}/inbox"
    store.put_file(clips["carphone"], f"{inbox}/a.mp4")
    process = trigger(
        "--on-bucket", inbox, "--local", "--external-store", "--workspace", str(tmp_path),
        "--minutes", "0.3", "-p", f"storage_root={storage_root}", env={**os.environ, **store_env},
    )  # fmt: skip
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert output.count("1 new objects: starting a run") == 1
    assert output.endswith("done: 1 runs started\n")
    (report,) = [
        json.loads(store.get_bytes(info.uri))
        for info in store.list(f"{storage_root}/run_report/")
        if info.uri.endswith("/run.json")
    ]
    assert report["outcome"] == "nothing to do" and report["counts"]["new"] == 1
    assert [page.name for page in (tmp_path / "reports").iterdir()] == [
        "fleet-tokenizer-run-report.html"
    ]
