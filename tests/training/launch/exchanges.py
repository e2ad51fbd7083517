"""Calls to a Kubernetes API, in order, whose answers were recorded from real servers.

`tests/data/recorded/kubernetes-<version>.json` holds what a real API server of that version
answered. `tests.servers.test_recorded` holds the fake server to it;
`tests.cluster.test_recorded` holds the cluster at hand to it, or records it anew
(COSMOS_RECORD=1), so neither drifts from the other.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from components.training.launch.interface import LaunchRequest
from components.training.launch.pytorchjob import PyTorchJob

RECORDED = Path(__file__).parents[2] / "data" / "recorded"
JOBS = "/apis/kubeflow.org/v1/namespaces/{namespace}/pytorchjobs"
PODS = "/api/v1/namespaces/{namespace}/pods"
NAME = "recorded-1"


class Call(NamedTuple):
    """One request. ``account``: admin, step (the steps' ServiceAccount) or stranger (no token)."""

    what: str
    method: str
    path: str
    body: Any = None
    account: str = "admin"


def body(change: Callable[[dict[str, Any]], object] | None = None) -> dict[str, Any]:
    """A small suspended job, changed."""
    request = LaunchRequest(
        name=NAME, image="none", command=("-c", "pass"), gpus_per_node=0, suspend=True
    )
    made = PyTorchJob().body(request)
    if change is not None:
        made = copy.deepcopy(made)
        change(made)
    return made


def master(job: dict[str, Any]) -> dict[str, Any]:
    return job["spec"]["pytorchReplicaSpecs"]["Master"]


def calls() -> Iterator[Call]:
    """The calls; the job of `NAME` must not exist before, and does not after."""
    strict = JOBS + "?fieldValidation=Strict"
    yield Call("get before it exists", "GET", f"{JOBS}/{NAME}")
    yield Call("delete before it exists", "DELETE", f"{JOBS}/{NAME}")
    yield Call("patch before it exists", "PATCH", f"{JOBS}/{NAME}", annotation())
    yield Call("wrong version", "POST", strict, body(lambda j: j.update(apiVersion="x/v1")))
    yield Call("replicas in words", "POST", strict,
               body(lambda j: master(j).update(replicas="three")))  # fmt: skip
    yield Call("no replicas", "POST", strict, body(lambda j: j["spec"].pop("pytorchReplicaSpecs")))
    yield Call("no containers", "POST", strict,
               body(lambda j: master(j)["template"]["spec"].pop("containers")))  # fmt: skip
    yield Call("bad name", "POST", strict, body(lambda j: j["metadata"].update(name="Bad_Name")))
    yield Call("bad label", "POST", strict,
               body(lambda j: j["metadata"]["labels"].update(run="no spaces here")))  # fmt: skip
    yield Call("by nobody", "POST", strict, body(), "stranger")
    yield Call("create", "POST", strict, body(), "step")
    yield Call("create again", "POST", strict, body(), "step")
    yield Call("get", "GET", f"{JOBS}/{NAME}", None, "step")
    yield Call("list as the step", "GET", JOBS, None, "step")
    yield Call("annotate", "PATCH", f"{JOBS}/{NAME}", annotation(), "step")
    yield Call("watch an expired version", "GET",
               JOBS + f"?watch=true&timeoutSeconds=2&fieldSelector=metadata.name%3D{NAME}"
               "&resourceVersion=1", None, "step")  # fmt: skip
    yield Call("delete as nobody", "DELETE", f"{JOBS}/{NAME}", None, "stranger")
    yield Call("delete", "DELETE", f"{JOBS}/{NAME}", None, "step")
    yield Call("a kind that is not installed", "GET",
               "/apis/none.example/v1/namespaces/{namespace}/nones/x")  # fmt: skip
    yield Call("create a kind that is not installed", "POST",
               "/apis/none.example/v1/namespaces/{namespace}/nones", body())  # fmt: skip
    yield Call("another kind of an installed group", "GET",
               JOBS.replace("pytorchjobs", "nonejobs") + "/x")  # fmt: skip
    yield Call("log of no pod", "GET", PODS + "/none/log?container=pytorch", None, "step")


def annotation() -> dict[str, Any]:
    return {"metadata": {"annotations": {"a": "b"}}}


def normal(text: str, namespace: str) -> str:
    """An answer's words without what differs from run to run."""
    text = text.replace(namespace, "{namespace}")
    return re.sub(r"\b\d{2,}\b", "N", text)


def words(text: str, namespace: str) -> dict[str, Any]:
    """The kind of an answer and what it says, for comparing."""
    try:
        record = json.loads(text)
    except ValueError:
        return {"text": normal(text.strip(), namespace)}
    if "object" in record:  # an event of a watch
        inner = record["object"]
        return {"event": record["type"], "code": inner.get("code"), "reason": inner.get("reason")}
    if record.get("kind") != "Status":
        return {"kind": record["kind"]}
    found = {"kind": "Status", "reason": record.get("reason")}
    if record.get("status") == "Failure":
        found["message"] = normal(record["message"], namespace)
    return found


def recordings() -> dict[str, dict[str, Any]]:
    """Version -> what -> the answer."""
    return {
        path.stem.removeprefix("kubernetes-"): json.loads(path.read_text())
        for path in sorted(RECORDED.glob("kubernetes-*.json"))
    }
