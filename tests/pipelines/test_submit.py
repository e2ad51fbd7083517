"""Submitting, following and cancelling runs, against KFP's API as kfp-server-api has it."""

import importlib
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from components import images
from components.lib.contract import UserError
from pipelines import client
from pipelines.client import Connection, Server
from tests.servers.faults import Trouble
from tests.servers.kfp import FakeKfp

VIDEOS = {"videos": "s3://fleet/day-1"}


def invoke(name: str, *arguments: str) -> Result:
    """Run a command as the command line does."""
    module = importlib.import_module(f"pipelines.commands.{name}")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(module.command)
    return CliRunner().invoke(app, list(arguments))


def test_a_run_is_started_from_the_uploaded_version(kfp_server: FakeKfp, server: Server) -> None:
    run = client.submit(server, "tokenizer", VIDEOS)
    stored = kfp_server.runs[run.run_id]
    version = kfp_server.versions[stored["pipeline_version_reference"]["pipeline_version_id"]]
    assert stored["runtime_config"]["parameters"] == VIDEOS
    assert stored["service_account"] == "cosmos-pipeline"
    assert version["pipeline_spec"]["pipelineInfo"]["name"] == "tokenizer-post-training"
    assert run.url == f"{kfp_server.url}/#/runs/details/{run.run_id}"


def test_an_unchanged_pipeline_is_not_uploaded_again(kfp_server: FakeKfp, server: Server) -> None:
    client.submit(server, "tokenizer", VIDEOS)
    client.submit(server, "tokenizer", VIDEOS)
    assert len(kfp_server.versions) == 1
    image = {images.DATA: "r/data@sha256:" + "1" * 64}
    client.submit(server, "tokenizer", VIDEOS, images=image)
    assert len(kfp_server.pipelines) == 1
    assert len(kfp_server.versions) == 2
    assert len(kfp_server.experiments) == 1


def test_images_are_replaced_in_what_is_uploaded(kfp_server: FakeKfp, server: Server) -> None:
    reference = "r/data@sha256:" + "1" * 64
    client.submit(server, "tokenizer", VIDEOS, images={images.DATA: reference})
    version = next(iter(kfp_server.versions.values()))
    executors = version["pipeline_spec"]["deploymentSpec"]["executors"].values()
    used = {executor["container"]["image"] for executor in executors}
    assert reference in used
    assert images.DATA not in used


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({}, "The parameter 'videos' is required"),
        ({**VIDEOS, "vidoes": "x"}, "no parameter 'vidoes'. Did you mean 'videos'"),
        ({"videos": 3}, "'videos' must be a string, not 3"),
        ({**VIDEOS, "overrides": ["training.nodse=2"]}, "no field 'nodse'"),
    ],
)
def test_mistakes_are_refused_before_anything_is_sent(
    kfp_server: FakeKfp, server: Server, parameters: dict[str, Any], words: str
) -> None:
    before = len(kfp_server.requests)
    with pytest.raises(UserError, match=words):
        client.submit(server, "tokenizer", parameters)
    assert len(kfp_server.requests) == before


PASSING: list[Trouble] = [401, 408, 429, 500, 502, 503, 504, "drop", "hang"]


@pytest.mark.parametrize("status", PASSING)
def test_passing_errors_pass(kfp_server: FakeKfp, server: Server, status: Trouble) -> None:
    for method, path in (("GET", "/pipelines"), ("GET", "/experiments"), ("GET", "/versions")):
        kfp_server.fail(method, path, status)
    run = client.submit(server, "tokenizer", VIDEOS)
    kfp_server.fail("GET", f"/runs/{run.run_id}", status, times=2)
    assert client.run_info(server, run.run_id).state == "PENDING"
    kfp_server.fail("POST", ":terminate", status, times=2)
    client.cancel(server, run.run_id)
    assert client.run_info(server, run.run_id).state == "CANCELED"


@pytest.mark.parametrize("status", [503, "drop"])
def test_credentials_are_renewed_through_an_outage(
    kfp_server: FakeKfp, server: Server, monkeypatch: pytest.MonkeyPatch, status: Trouble
) -> None:
    """A 401 opens a new connection; that this fails too is not the end."""
    run = client.submit(server, "tokenizer", VIDEOS)
    kfp_server.token = "renewed"
    monkeypatch.setenv("KFP_EXISTING_TOKEN", "renewed")
    kfp_server.fail("GET", "/healthz", status, times=2)
    assert client.run_info(server, run.run_id).state == "PENDING"


@pytest.mark.parametrize("status", [503, "drop"])
def test_the_first_contact_is_tried_again(kfp_server: FakeKfp, status: Trouble) -> None:
    kfp_server.fail("GET", "/healthz", status, times=2)
    assert client.list_runs(Server(Connection(patience_s=5, pause_s=0.01))) == []


def test_the_server_s_wish_to_wait_is_respected(
    kfp_server: FakeKfp, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("components.lib.system.patience.time.sleep", pauses.append)
    server.connection = server.connection.model_copy(update={"patience_s": 60.0})
    kfp_server.fail("GET", "/runs", 429, headers={"Retry-After": "7"})
    client.list_runs(server)
    assert pauses == [7.0]


@pytest.mark.parametrize("path", ["/pipelines$", "/upload_version"])
def test_what_someone_else_created_meanwhile_is_used(
    kfp_server: FakeKfp, server: Server, path: str
) -> None:
    """Two submits at once: the slower one's create is a 409."""
    kfp_server.fail("POST", path, 409, after=True)
    client.submit(server, "tokenizer", VIDEOS)
    assert len(kfp_server.runs) == len(kfp_server.versions) == len(kfp_server.pipelines) == 1


@pytest.mark.parametrize("status", [500, 504, "drop", "hang"])
def test_a_lost_answer_starts_no_second_run(
    kfp_server: FakeKfp, server: Server, status: Trouble
) -> None:
    kfp_server.fail("POST", "/runs", status, after=True)
    run = client.submit(server, "tokenizer", VIDEOS)
    assert list(kfp_server.runs) == [run.run_id]


@pytest.mark.parametrize("path", ["/pipelines$", "/upload_version", "/experiments"])
def test_a_refused_connection_is_tried_again(
    kfp_server: FakeKfp, server: Server, path: str
) -> None:
    kfp_server.fail("POST", path, "drop")
    client.submit(server, "tokenizer", VIDEOS)
    assert len(kfp_server.runs) == len(kfp_server.versions) == 1


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "does not know you. Set KFP_EXISTING_TOKEN"),
        (403, "You may not do that in namespace"),
        (404, "Check the name or id"),
        (410, "Starting a run of 'tokenizer': KFP answers 410: trouble"),
        (429, "Starting a run of 'tokenizer': KFP answers 429: trouble"),
        (503, "Starting a run of 'tokenizer': KFP answers 503: trouble"),
        (400, "Starting a run of 'tokenizer': KFP answers 400: trouble"),
    ],
)
def test_refusals_say_what_to_do(kfp_server: FakeKfp, status: Trouble, words: str) -> None:
    server = Server(Connection(patience_s=0.2, pause_s=0.05))
    kfp_server.fail("POST", "/runs", status, times=100)
    with pytest.raises(UserError, match=words):
        client.submit(server, "tokenizer", VIDEOS)


def test_the_token_comes_from_the_environment(
    kfp_server: FakeKfp, monkeypatch: pytest.MonkeyPatch
) -> None:
    kfp_server.token = "secret"
    with pytest.raises(UserError, match="401"):
        client.list_runs(Server(Connection(patience_s=0.1, pause_s=0.05)))
    monkeypatch.setenv("KFP_EXISTING_TOKEN", "secret")
    assert client.list_runs(Server(Connection(patience_s=1, pause_s=0.05))) == []


def test_a_cookie_of_a_log_in_comes_from_the_environment(
    kfp_server: FakeKfp, monkeypatch: pytest.MonkeyPatch
) -> None:
    kfp_server.cookie = "authservice_session=abc"
    server = Server(Connection(patience_s=0.1, pause_s=0.05, namespace="team"))
    with pytest.raises(UserError, match="401"):
        client.list_runs(server)
    monkeypatch.setenv("KFP_COOKIES", "authservice_session=abc")
    assert client.list_runs(Server(Connection(patience_s=1, pause_s=0.05))) == []


def test_an_unreachable_kfp_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="Set KF_PIPELINES_ENDPOINT or --endpoint"):
        client.list_runs(Server(Connection(patience_s=0.1, pause_s=0.05)))


def test_following_says_each_change_and_ends(kfp_server: FakeKfp, server: Server) -> None:
    run = client.submit(server, "tokenizer", VIDEOS)
    kfp_server.tasks(run.run_id, discover="RUNNING")
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if len(said) == 1:  # the run goes on once its first state has been seen
            kfp_server.tasks(run.run_id, discover="SUCCEEDED", train="FAILED")
            kfp_server.finish(run.run_id, "FAILED", "train: out of luck")

    kfp_server.fail("GET", f"/runs/{run.run_id}", 503, times=2)
    ended = client.follow(server, run.run_id, say, poll_s=0.02)
    assert (ended.state, ended.error) == ("FAILED", "train: out of luck")
    assert said == ["discover: running", "discover: succeeded", "train: failed"]


@pytest.mark.parametrize("state", ["CANCELED", "SKIPPED", "FAILED", "SUCCEEDED"])
def test_following_ends_in_every_final_state(
    kfp_server: FakeKfp, server: Server, state: str
) -> None:
    """kfp's own wait knows no CANCELED and never returns."""
    run = client.submit(server, "tokenizer", VIDEOS)
    kfp_server.finish(run.run_id, state)
    assert client.follow(server, run.run_id, print, poll_s=0.01).state == state


def test_tasks_of_one_name_are_told_apart(kfp_server: FakeKfp, server: Server) -> None:
    """KFP gives all iterations of a loop one name, and lists tasks in any order."""
    run = client.submit(server, "diffusion", VIDEOS, encode_pods=2)
    states = {"a": "FAILED", "b": "RUNNING"}

    def answer(names: str) -> None:
        tasks = [
            {"task_id": name, "run_id": run.run_id, "display_name": "encode a part",
             "state": states[name], "create_time": f"2026-11-02T10:00:0{'ba'.index(name)}Z"}
            for name in names
        ]  # fmt: skip
        kfp_server.runs[run.run_id]["run_details"] = {"task_details": tasks}

    for order in ("ab", "ba"):
        answer(order)
        tasks = client.run_info(server, run.run_id).tasks
        assert [(task.name, task.state) for task in tasks] == [
            ("encode a part", "RUNNING"),
            ("encode a part (2)", "FAILED"),
        ]


def test_the_number_of_pods_is_part_of_what_is_uploaded(kfp_server: FakeKfp, quick: None) -> None:
    for pods in ("1", "2"):
        done = invoke("submit", "diffusion", "-p", "videos=s3://x/y", "--encode-pods", pods)
        assert done.exit_code == 0, done.output
    alone, shared = (v["pipeline_spec"]["components"] for v in kfp_server.versions.values())
    assert "comp-latent-encoding-part" in shared and "comp-latent-encoding-part" not in alone
    refused = invoke("schedule", "create", "x", "tokenizer", "--cron", "0 2 * * *",
                     "-p", "videos=s3://x/y", "--encode-pods", "2")  # fmt: skip
    assert "'tokenizer' encodes no latents" in str(refused.exception)


def test_the_commands_work_together(kfp_server: FakeKfp, quick: None) -> None:
    submitted = invoke("submit", "tokenizer", "-p", "videos=s3://fleet/day-1", "--set",
                       "trainer.max_steps=5")  # fmt: skip
    assert submitted.exit_code == 0, submitted.output
    run_id = submitted.output.splitlines()[0]
    stored = kfp_server.runs[run_id]
    assert stored["runtime_config"]["parameters"]["overrides"] == ["trainer.max_steps=5"]
    kfp_server.tasks(run_id, train="RUNNING")
    kfp_server.finish(run_id, "RUNNING")
    assert run_id in invoke("status").output
    shown = invoke("status", run_id).output
    assert "train" in shown and "RUNNING" in shown
    cancelled = invoke("cancel", run_id)
    assert cancelled.exit_code == 0, cancelled.output
    assert kfp_server.runs[run_id]["state"] == "CANCELED"
    waited = invoke("status", run_id, "--wait")
    assert isinstance(waited.exception, UserError)
    assert "ended as CANCELED" in str(waited.exception)


def test_waiting_for_success_exits_with_zero(kfp_server: FakeKfp, quick: None) -> None:
    def later() -> None:
        while not kfp_server.runs:
            time.sleep(0.01)
        kfp_server.finish(next(iter(kfp_server.runs)), "SUCCEEDED")

    threading.Thread(target=later).start()
    result = invoke("submit", "tokenizer", "-p", "videos=s3://x/y", "--wait")
    assert result.exit_code == 0, result.output
    assert "succeeded" in result.output


def test_parameters_can_come_from_a_file(kfp_server: FakeKfp, tmp_path: Path) -> None:
    path = tmp_path / "form.yaml"
    path.write_text(yaml.safe_dump({"videos": "s3://a/b", "model_name": "m"}))
    result = invoke("submit", "tokenizer", "-f", str(path), "-p", "videos=s3://c/d")
    assert result.exit_code == 0, result.output
    stored = next(iter(kfp_server.runs.values()))["runtime_config"]["parameters"]
    assert stored == {"videos": "s3://c/d", "model_name": "m"}


def test_logs_need_a_known_step(kfp_server: FakeKfp, server: Server) -> None:
    run = client.submit(server, "tokenizer", VIDEOS)
    kfp_server.tasks(run.run_id, train="RUNNING")
    result = invoke("logs", run.run_id, "trian")
    assert "has no step 'trian'. Steps: train" in str(result.exception)


def test_the_fake_finds_what_is_not_in_the_api(kfp_server: FakeKfp) -> None:
    """An oracle that cannot fail proves nothing."""
    import urllib.request

    request = urllib.request.Request(
        f"{kfp_server.url}/apis/v2beta1/runs", data=b'{"display_nam": "x"}', method="POST"
    )
    with pytest.raises(OSError):
        urllib.request.urlopen(request, timeout=5)
    assert kfp_server.violations == ["body has no field display_nam"]
    kfp_server.violations.clear()
