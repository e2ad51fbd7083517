"""The fake Kubernetes, met by a plain HTTP client and by the official one."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator

import pytest
from kubernetes import watch
from kubernetes.client import CoreV1Api, CustomObjectsApi
from kubernetes.client.exceptions import ApiException

from components.training.launch.interface import LaunchRequest
from components.training.launch.pytorchjob import PyTorchJob
from tests.servers.faults import Trouble
from tests.servers.kubernetes import NAMESPACE, FakeKubernetes, api_client, fake_kubernetes
from tests.servers.loopback import Json

JOBS = f"/apis/kubeflow.org/v1/namespaces/{NAMESPACE}/pytorchjobs"
CORE = f"/api/v1/namespaces/{NAMESPACE}"
PLACE = ("kubeflow.org", "v1", NAMESPACE, "pytorchjobs")
LABELS = {"team": "a", "role": "rank"}


@pytest.fixture
def kubernetes() -> Iterator[FakeKubernetes]:
    """A server without objects."""
    with fake_kubernetes() as fake:
        yield fake


@pytest.fixture
def objects(kubernetes: FakeKubernetes) -> CustomObjectsApi:
    """The official client of custom objects, as an administrator."""
    return CustomObjectsApi(api_client(kubernetes.url, "admin"))


@pytest.fixture
def core(kubernetes: FakeKubernetes) -> CoreV1Api:
    """The official client of pods, events and quotas, as a step."""
    return CoreV1Api(api_client(kubernetes.url))


def body(name: str = "one", **labels: str) -> Json:
    request = LaunchRequest(name=name, image="i", command=("x",), labels=labels)
    return PyTorchJob().body(request)


def ask(
    fake: FakeKubernetes, method: str, path: str, record: Json | None = None, token: str = "good"
) -> tuple[int, str, str]:
    """Status, kind of content and text of an answer, by a plain client."""
    connection = http.client.HTTPConnection(fake.url.removeprefix("http://"), timeout=10)
    data = json.dumps(record) if record is not None else None
    connection.request(method, path, data, {"Authorization": f"Bearer {token}"})
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, response.headers["Content-Type"], text


def refusal(call: Callable[..., object], *arguments: object, **options: object) -> tuple[int, Json]:
    """Status and body of what the official client raises."""
    with pytest.raises(ApiException) as error:
        call(*arguments, **options)
    return int(error.value.status), json.loads(error.value.body)


def test_the_official_client_takes_an_object_through_its_life(objects: CustomObjectsApi) -> None:
    made = objects.create_namespaced_custom_object(*PLACE, body(team="a"))
    assert made["metadata"]["uid"] and made["kind"] == "PyTorchJob"
    before = made["metadata"]["resourceVersion"]
    patch = {"metadata": {"annotations": {"a": "b"}}}
    patched = objects.patch_namespaced_custom_object(*PLACE, "one", patch)
    assert patched["metadata"]["annotations"]["a"] == "b"
    assert patched["metadata"]["resourceVersion"] > before
    assert objects.get_namespaced_custom_object(*PLACE, "one") == patched
    objects.create_namespaced_custom_object(*PLACE, body("two", team="b"))
    listed = objects.list_namespaced_custom_object(*PLACE, label_selector="team=a")
    assert (listed["kind"], listed["items"]) == ("PyTorchJobList", [patched])
    assert len(objects.list_namespaced_custom_object(*PLACE)["items"]) == 2
    assert objects.delete_namespaced_custom_object(*PLACE, "one")["status"] == "Success"
    assert refusal(objects.get_namespaced_custom_object, *PLACE, "one")[0] == 404


def test_refusals_are_status_objects(kubernetes: FakeKubernetes, objects: CustomObjectsApi) -> None:
    kubernetes.create("pytorchjobs", body())
    step = CustomObjectsApi(api_client(kubernetes.url))
    stranger = CustomObjectsApi(api_client(kubernetes.url, "nobody"))
    create = objects.create_namespaced_custom_object
    unknown = body("two")
    unknown["spec"]["runPolicy"]["cleanPodPolcy"] = "None"
    refusals = {
        (404, "NotFound"): refusal(objects.get_namespaced_custom_object, *PLACE, "none"),
        (409, "AlreadyExists"): refusal(create, *PLACE, body()),
        (422, "Invalid"): refusal(create, *PLACE, unknown),
        (400, "BadRequest"): refusal(create, *PLACE, {**body("two"), "apiVersion": "x/v1"}),
        (401, "Unauthorized"): refusal(stranger.get_namespaced_custom_object, *PLACE, "one"),
        (403, "Forbidden"): refusal(step.list_namespaced_custom_object, *PLACE),
    }
    for (status, reason), (answered, record) in refusals.items():
        assert answered == record["code"] == status
        assert (record["kind"], record["status"], record["reason"]) == ("Status", "Failure", reason)
        assert record["message"]
    assert "cleanPodPolcy" in refusals[422, "Invalid"][1]["message"]


def test_a_kind_that_is_not_installed_is_no_status(kubernetes: FakeKubernetes) -> None:
    """So the two kinds of 404 can be told from each other."""
    kubernetes.installed.discard("pytorchjobs")
    for method, path in (("GET", f"{JOBS}/x"), ("POST", JOBS), ("GET", "/apis/none.example/v1")):
        record: Json | None = {} if method == "POST" else None
        assert ask(kubernetes, method, path, record) == (404, "text/plain", "404 page not found\n")


@pytest.mark.parametrize("kind", ["pytorchjobs", "trainjobs", "trainingruntimes"])
def test_schemas_know_their_fields_and_no_others(kubernetes: FakeKubernetes, kind: str) -> None:
    crd = kubernetes.kinds[kind]
    empty = {"apiVersion": crd.api_version, "kind": crd.name, "metadata": {"name": "x"}}
    assert crd.problems(empty) == []
    (problem,) = crd.problems({**empty, "sepc": {}})
    assert "'sepc' was unexpected" in problem
    assert crd.problems({**empty, "spec": "words"})


def test_a_watch_tells_the_next_change(
    kubernetes: FakeKubernetes, objects: CustomObjectsApi
) -> None:
    """The official client's watch, which asks again where a stream ended."""
    kubernetes.create("pytorchjobs", body())
    options = {"field_selector": "metadata.name=one", "timeout_seconds": 5}
    list_jobs = objects.list_namespaced_custom_object

    def events(version: str) -> list[tuple[str, Json]]:
        stream = watch.Watch().stream(list_jobs, *PLACE, resource_version=version, **options)
        return [(event["type"], event["object"]) for event in stream]

    ((kind, job),) = events("")
    assert (kind, job) == ("ADDED", kubernetes.job("one"))
    version = job["metadata"]["resourceVersion"]
    threading.Timer(0.2, kubernetes.condition, ("one", "Running")).start()
    ((kind, job),) = events(version)
    assert kind == "MODIFIED" and job["status"]["conditions"][0]["type"] == "Running"
    threading.Timer(0.2, kubernetes.delete, ("pytorchjobs", "one")).start()
    ((kind, gone),) = events(job["metadata"]["resourceVersion"])
    assert (kind, gone["metadata"]["name"]) == ("DELETED", "one")


def test_a_watch_without_changes_ends_in_time(kubernetes: FakeKubernetes) -> None:
    kubernetes.create("pytorchjobs", body())
    version = kubernetes.job("one")["metadata"]["resourceVersion"]
    query = f"watch=true&fieldSelector=metadata.name%3Done&resourceVersion={version}"
    assert ask(kubernetes, "GET", f"{JOBS}?{query}&timeoutSeconds=1")[::2] == (200, "")


def test_an_expired_version_is_told_within_the_stream(
    kubernetes: FakeKubernetes, objects: CustomObjectsApi
) -> None:
    kubernetes.create("pytorchjobs", body())
    query = "watch=true&fieldSelector=metadata.name%3Done&timeoutSeconds=1&resourceVersion=1"
    status, _, text = ask(kubernetes, "GET", f"{JOBS}?{query}")
    event = json.loads(text)
    assert (status, event["type"], event["object"]["code"]) == (200, "ERROR", 410)
    stream = watch.Watch().stream(
        objects.list_namespaced_custom_object, *PLACE, field_selector="metadata.name=one",
        resource_version="1", timeout_seconds=1,
    )  # fmt: skip
    with pytest.raises(ApiException) as error:
        list(stream)
    assert error.value.status == 410


def test_a_version_expires_as_often_as_it_was_ordered(kubernetes: FakeKubernetes) -> None:
    kubernetes.create("pytorchjobs", body())
    kubernetes.watch_errors = 2
    query = "watch=true&fieldSelector=metadata.name%3Done&timeoutSeconds=1&resourceVersion=100"
    answers = [json.loads(ask(kubernetes, "GET", f"{JOBS}?{query}")[2]) for _ in range(3)]
    assert [event["type"] for event in answers] == ["ERROR", "ERROR", "MODIFIED"]


def test_pods_are_found_by_labels_and_by_name(kubernetes: FakeKubernetes, core: CoreV1Api) -> None:
    kubernetes.pod("a", LABELS, "Pending")
    kubernetes.pod("b", {"team": "a"})
    pods = core.list_namespaced_pod(NAMESPACE, label_selector="team=a,role=rank").items
    assert [(pod.metadata.name, pod.status.phase) for pod in pods] == [("a", "Pending")]
    (pod,) = core.list_namespaced_pod(NAMESPACE, field_selector="metadata.name=b").items
    assert pod.metadata.labels == {"team": "a"}
    assert core.list_namespaced_pod(NAMESPACE, label_selector="team=c").items == []
    assert core.list_namespaced_pod(NAMESPACE, field_selector="metadata.name=c").items == []
    assert len(core.list_namespaced_pod(NAMESPACE).items) == 2


def test_quotas_and_events_are_lists(kubernetes: FakeKubernetes, core: CoreV1Api) -> None:
    kubernetes.quotas.append({"metadata": {"name": "q"}, "status": {"hard": {"pods": "2"}}})
    kubernetes.events.append({"metadata": {"name": "e"}, "involvedObject": {"name": "a"}})
    (quota,) = core.list_namespaced_resource_quota(NAMESPACE).items
    assert quota.status.hard == {"pods": "2"}
    (event,) = core.list_namespaced_event(NAMESPACE).items
    assert event.involved_object.name == "a"


def test_the_log_of_an_ended_pod(kubernetes: FakeKubernetes, core: CoreV1Api) -> None:
    kubernetes.pod("a", {}, "Succeeded")
    kubernetes.log("a", "one", "two", "three")
    kubernetes.log("a previous", "before")
    read = core.read_namespaced_pod_log
    assert read("a", NAMESPACE) == "one\ntwo\nthree\n"
    assert read("a", NAMESPACE, tail_lines=2) == "two\nthree\n"
    assert read("a", NAMESPACE, previous=True) == "before\n"
    stamped = "2026-01-01T00:00:00.5Z one\n"
    assert read("a", NAMESPACE, timestamps=True).startswith(stamped)
    query = "timestamps=true&sinceTime=2026-01-01T00:00:01Z"
    _, _, text = ask(kubernetes, "GET", f"{CORE}/pods/a/log?{query}")
    assert [line.split()[1] for line in text.splitlines()] == ["two", "three"]


def test_a_followed_log_lasts_as_long_as_its_pod(
    kubernetes: FakeKubernetes, core: CoreV1Api
) -> None:
    kubernetes.pod("a", {}, "Running")
    kubernetes.log("a", "one")
    response = core.read_namespaced_pod_log("a", NAMESPACE, follow=True, _preload_content=False)
    chunks = response.stream(4096, decode_content=False)
    assert next(chunks) == b"one\n"
    kubernetes.log("a", "two")
    assert next(chunks) == b"two\n"
    kubernetes.pod("a", {}, "Succeeded")
    assert list(chunks) == []
    response.release_conn()


def test_a_log_that_breaks_does_so_once_and_in_the_middle(kubernetes: FakeKubernetes) -> None:
    kubernetes.pod("a", {}, "Succeeded")
    kubernetes.log("a", "one<cut>", "two")
    with pytest.raises(http.client.IncompleteRead) as error:
        ask(kubernetes, "GET", f"{CORE}/pods/a/log")
    assert error.value.partial == b"one\n"
    assert ask(kubernetes, "GET", f"{CORE}/pods/a/log")[2] == "one\ntwo\n"


def test_logs_that_are_not_there_yet(kubernetes: FakeKubernetes, core: CoreV1Api) -> None:
    kubernetes.pod("waits", {}, "Pending")
    status, record = refusal(core.read_namespaced_pod_log, "waits", NAMESPACE)
    assert (status, record["reason"]) == (400, "BadRequest")
    assert "waiting to start" in record["message"]
    assert refusal(core.read_namespaced_pod_log, "none", NAMESPACE)[0] == 404


@pytest.mark.parametrize("trouble", [429, 503, "drop", "login page"])
def test_trouble_comes_as_often_as_it_was_ordered(
    kubernetes: FakeKubernetes, trouble: Trouble
) -> None:
    kubernetes.create("pytorchjobs", body())
    kubernetes.fail("GET", "/one$", trouble, times=2, message="busy", headers={"Retry-After": "7"})
    for _ in range(2):
        if trouble == "drop":
            with pytest.raises(http.client.RemoteDisconnected):
                ask(kubernetes, "GET", f"{JOBS}/one")
        elif trouble == "login page":
            status, kind, text = ask(kubernetes, "GET", f"{JOBS}/one")
            assert (status, kind) == (200, "text/html") and "log in" in text
        else:
            status, _, text = ask(kubernetes, "GET", f"{JOBS}/one")
            assert (status, json.loads(text)["message"]) == (trouble, "busy")
    assert ask(kubernetes, "GET", f"{JOBS}/one")[0] == 200
    assert kubernetes.count("GET", "/one$") == 3


def test_a_create_calls_the_operator(kubernetes: FakeKubernetes) -> None:
    names: list[str] = []
    called = threading.Event()

    def operator(name: str) -> None:
        names.append(name)
        called.set()

    kubernetes.on_create(operator)
    assert ask(kubernetes, "POST", JOBS, body())[0] == 201
    assert called.wait(5) and names == ["one"]


def test_the_next_condition_replaces_the_last(kubernetes: FakeKubernetes) -> None:
    kubernetes.create("pytorchjobs", body())
    kubernetes.condition("one", "Running", "it runs")
    kubernetes.condition("one", "Failed", "it failed", "BackoffLimitExceeded", completionTime="t")
    status = kubernetes.job("one")["status"]
    states = [(item["type"], item["status"]) for item in status["conditions"]]
    assert states == [("Running", "False"), ("Failed", "True")]
    assert status["conditions"][1]["reason"] == "BackoffLimitExceeded"
    assert status["completionTime"] == "t"
