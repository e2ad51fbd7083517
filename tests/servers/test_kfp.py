"""The fake KFP, met by a plain HTTP client and by the generated one."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kfp_server_api
import pytest
from kfp_server_api.exceptions import ApiException

from tests.servers.faults import Trouble
from tests.servers.kfp import FakeKfp, fake_kfp
from tests.servers.kfp_api import read_routes, violations
from tests.servers.loopback import Json

ROOT = "/apis/v2beta1"


@pytest.fixture
def server() -> Iterator[FakeKfp]:
    """A server without objects."""
    with fake_kfp() as fake:
        yield fake


@pytest.fixture
def api(server: FakeKfp) -> kfp_server_api.ApiClient:
    """The generated client."""
    return kfp_server_api.ApiClient(kfp_server_api.Configuration(host=server.url))


def ask(
    server: FakeKfp, method: str, path: str, record: Json | None = None, token: str = ""
) -> tuple[int, Json]:
    """Status and body of an answer, by a plain client."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
    data = json.dumps(record) if record is not None else None
    connection.request(method, ROOT + path, data, {"Authorization": f"Bearer {token}"})
    response = connection.getresponse()
    status, text = response.status, response.read()
    connection.close()
    return status, json.loads(text)


def pipeline_with_version(api: kfp_server_api.ApiClient, folder: Path) -> tuple[str, str]:
    """Ids of a pipeline and of its uploaded version."""
    body = kfp_server_api.V2beta1Pipeline(name="p", display_name="p")
    made = kfp_server_api.PipelineServiceApi(api).pipeline_service_create_pipeline(body)
    path = folder / "p.yaml"
    path.write_text("pipelineInfo: {name: p}\n---\nplatforms: {}\n")
    version = kfp_server_api.PipelineUploadServiceApi(api).upload_pipeline_version(
        str(path), name="p-1", pipelineid=made.pipeline_id
    )
    assert version.pipeline_spec == {"pipelineInfo": {"name": "p"}}
    return made.pipeline_id, version.pipeline_version_id


def run_body(pipeline_id: str, version_id: str, name: str = "r") -> Any:
    reference = kfp_server_api.V2beta1PipelineVersionReference(
        pipeline_id=pipeline_id, pipeline_version_id=version_id
    )
    return kfp_server_api.V2beta1Run(display_name=name, pipeline_version_reference=reference)


def named(name: str) -> str:
    predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
    return json.dumps({"predicates": [predicate]})


def refusal(error: ApiException) -> tuple[int, Json]:
    """Status and body, which must be of the client's model of errors."""
    record = json.loads(error.body)
    assert list(violations("GoogleRpcStatus", record)) == []
    return int(error.status), record


def test_the_generated_client_takes_a_run_through_its_life(
    server: FakeKfp, api: kfp_server_api.ApiClient, tmp_path: Path
) -> None:
    runs = kfp_server_api.RunServiceApi(api)
    made = runs.run_service_create_run(run_body(*pipeline_with_version(api, tmp_path)))
    assert made.state == "PENDING" and made.created_at.year == 2026
    server.tasks(made.run_id, discover="SUCCEEDED", train="RUNNING")
    server.finish(made.run_id, "FAILED", "out of luck")
    read = runs.run_service_get_run(made.run_id)
    assert (read.state, read.error.message) == ("FAILED", "out of luck")
    tasks = {task.display_name: task for task in read.run_details.task_details}
    assert tasks["train"].state == "RUNNING"
    assert tasks["train"].child_tasks[0].pod_name == "pod-train"
    runs.run_service_terminate_run(made.run_id)
    assert runs.run_service_get_run(made.run_id).state == "CANCELED"
    assert server.violations == []


def test_lists_are_filtered_by_name_and_runs_are_newest_first(
    server: FakeKfp, api: kfp_server_api.ApiClient, tmp_path: Path
) -> None:
    ids = pipeline_with_version(api, tmp_path)
    runs = kfp_server_api.RunServiceApi(api)
    for name in ("one", "two", "three"):
        runs.run_service_create_run(run_body(*ids, name))
    names = [run.display_name for run in runs.run_service_list_runs().runs]
    assert names == ["three", "two", "one"]
    (run,) = runs.run_service_list_runs(filter=named("two")).runs
    assert run.display_name == "two"
    pipelines = kfp_server_api.PipelineServiceApi(api)
    assert len(pipelines.pipeline_service_list_pipelines(filter=named("p")).pipelines) == 1
    assert not pipelines.pipeline_service_list_pipelines(filter=named("q")).pipelines
    versions = pipelines.pipeline_service_list_pipeline_versions(ids[0]).pipeline_versions
    assert [version.pipeline_version_id for version in versions] == [ids[1]]
    experiments = kfp_server_api.ExperimentServiceApi(api)
    experiments.experiment_service_create_experiment(
        kfp_server_api.V2beta1Experiment(display_name="e")
    )
    listed = experiments.experiment_service_list_experiments(filter=named("e")).experiments
    assert [item.display_name for item in listed] == ["e"]
    assert server.violations == []


def test_recurring_runs_come_in_pages(server: FakeKfp, api: kfp_server_api.ApiClient) -> None:
    schedules = kfp_server_api.RecurringRunServiceApi(api)
    for index in range(5):
        body = kfp_server_api.V2beta1RecurringRun(display_name=f"s{index}", mode="ENABLE")
        schedules.recurring_run_service_create_recurring_run(body)
    pages, token = [], ""
    while True:
        page = schedules.recurring_run_service_list_recurring_runs(page_token=token, page_size=100)
        pages.append([item.display_name for item in page.recurring_runs])
        token = page.next_page_token
        if not token:
            break
    assert pages == [["s0", "s1"], ["s2", "s3"], ["s4"]]
    identity = next(iter(server.schedules))
    schedules.recurring_run_service_disable_recurring_run(identity)
    assert server.schedules[identity]["status"] == "DISABLED"
    schedules.recurring_run_service_enable_recurring_run(identity)
    assert server.schedules[identity]["status"] == "ENABLED"
    schedules.recurring_run_service_delete_recurring_run(identity)
    assert len(server.schedules) == 4
    assert server.violations == []


def test_refusals_are_of_the_client_s_model(
    server: FakeKfp, api: kfp_server_api.ApiClient, tmp_path: Path
) -> None:
    pipelines, runs = kfp_server_api.PipelineServiceApi(api), kfp_server_api.RunServiceApi(api)
    pipeline_id, _ = pipeline_with_version(api, tmp_path)
    body = kfp_server_api.V2beta1Pipeline(name="p", display_name="p")
    with pytest.raises(ApiException) as twice:
        pipelines.pipeline_service_create_pipeline(body)
    assert refusal(twice.value) == (
        409,
        {"code": 6, "message": "pipeline already exists", "details": []},
    )
    for call in (
        lambda: runs.run_service_get_run("none"),
        lambda: runs.run_service_terminate_run("none"),
        lambda: runs.run_service_create_run(run_body(pipeline_id, "none")),
        lambda: kfp_server_api.PipelineUploadServiceApi(api).upload_pipeline_version(
            str(tmp_path / "p.yaml"), name="x", pipelineid="none"
        ),
        lambda: kfp_server_api.RecurringRunServiceApi(
            api
        ).recurring_run_service_delete_recurring_run("none"),
    ):
        with pytest.raises(ApiException) as missing:
            call()
        status, record = refusal(missing.value)
        assert (status, record["code"]) == (404, 5)
    assert server.violations == []


def test_tokens_and_cookies_are_asked_for(server: FakeKfp, api: kfp_server_api.ApiClient) -> None:
    server.token = "secret"
    assert ask(server, "GET", "/runs")[0] == 401
    assert ask(server, "GET", "/runs", token="wrong")[0] == 401
    assert ask(server, "GET", "/runs", token="secret") == (200, {"runs": []})
    server.token, server.cookie = "", "session=abc"
    runs = kfp_server_api.RunServiceApi(api)
    with pytest.raises(ApiException) as error:
        runs.run_service_list_runs()
    assert refusal(error.value)[1]["code"] == 16
    api.cookie = "session=abc"
    assert not runs.run_service_list_runs().runs
    api.cookie = None  # health is told to everybody
    assert ask(server, "GET", "/healthz") == (200, {"multi_user": False})


@pytest.mark.parametrize(
    ("path", "record", "problem"),
    [
        ("/runs", {"display_nam": "x"}, "body has no field display_nam"),
        ("/experiments", {"display_name": 3}, "body.display_name is 3, not str"),
        ("/experiments", [], "body is [], not a V2beta1Experiment"),
        ("/recurringruns", {"trigger": {"cron": {}}}, "body.trigger has no field cron"),
        (
            "/recurringruns",
            {"mode": "ON"},
            "body.mode is 'ON', not one of ['MODE_UNSPECIFIED', 'ENABLE', 'DISABLE']",
        ),
    ],
)
def test_bodies_that_the_api_does_not_know_are_noted_and_refused(
    server: FakeKfp, path: str, record: Json, problem: str
) -> None:
    """An oracle that cannot fail proves nothing."""
    status, answer = ask(server, "POST", path, record)
    assert (status, answer["message"]) == (400, problem)
    assert server.violations == [problem]


def test_unknown_operations_and_query_parameters_are_noted(server: FakeKfp) -> None:
    assert ask(server, "GET", "/runs?page=2")[0] == 200
    assert ask(server, "GET", "/jobs")[0] == 404
    assert server.violations == [
        "/apis/v2beta1/runs has no query parameter page",
        "GET /apis/v2beta1/jobs is no operation of KFP",
    ]


def test_the_fake_s_own_answers_are_held_to_the_api(server: FakeKfp) -> None:
    server.runs["r"] = {"run_id": "r", "display_name": "r", "state": "DREAMING"}
    ask(server, "GET", "/runs/r")
    (problem,) = server.violations
    assert problem.startswith("fake: answer.state is 'DREAMING', not one of")


@pytest.mark.parametrize("trouble", [503, "drop", "login page"])
@pytest.mark.parametrize("after", [False, True])
def test_an_answer_can_be_lost_before_and_after_the_deed(
    server: FakeKfp, trouble: Trouble, after: bool
) -> None:
    server.fail("POST", "/experiments", trouble, after=after)
    with pytest.raises((http.client.RemoteDisconnected, ValueError, AssertionError)):
        status, _ = ask(server, "POST", "/experiments", {"display_name": "e"})
        assert status == 200
    assert len(server.experiments) == int(after)
    assert ask(server, "POST", "/experiments", {"display_name": "e"})[0] == 200


def test_the_client_s_source_is_still_read_as_it_is_written() -> None:
    """Every operation of the services that the pipelines use, with body and answer."""
    routes = {(route.method, route.path): route for route in read_routes()}
    create = routes["POST", f"{ROOT}/recurringruns"]
    assert (create.body, create.answer) == ("V2beta1RecurringRun", "V2beta1RecurringRun")
    runs = routes["GET", f"{ROOT}/runs"]
    assert {"filter", "page_size", "page_token", "sort_by", "namespace"} <= runs.query
    terminate = routes["POST", f"{ROOT}/runs/{{run_id}}:terminate"]
    assert terminate.regex.fullmatch(f"{ROOT}/runs/r-1:terminate")
    assert not routes["GET", f"{ROOT}/runs/{{run_id}}"].regex.match(f"{ROOT}/runs/r-1:terminate")
    used = ("pipelines", "runs", "experiments", "recurringruns")
    for (_, path), route in routes.items():
        if path.split("/")[3] in used and path != f"{ROOT}/pipelines/create":
            for kind in (route.body, route.answer):
                assert kind in (None, "object") or hasattr(kfp_server_api, kind), path
