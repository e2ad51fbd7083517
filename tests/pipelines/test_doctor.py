"""The doctor names what is wrong and what to do; it never stumbles over what it looks at."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.training.launch.kube import Cluster
from pipelines.backend import checks

from .test_submit import invoke

ROOT = Path(__file__).parents[2]
ACCOUNT = "system:serviceaccount:cosmos:cosmos-pipeline"


class Kubernetes:
    """Answers a doctor: paths, or a status that refuses."""

    def __init__(self) -> None:
        self.url = ""
        self.refused_rights: set[tuple[str, str]] = set()
        self.answers: dict[str, Any] = {
            "/version": {"gitVersion": "v1.31.2"},
            "/apis/kubeflow.org/v1": {"resources": [{"name": "pytorchjobs"}]},
            "/apis/trainer.kubeflow.org/v1alpha1": {"resources": [{"name": "trainjobs"}]},
            "/api/v1/nodes": {
                "items": [
                    {"metadata": {"name": "a"}, "status": {"allocatable": {"nvidia.com/gpu": "8"}}}
                ]
            },
            **{
                f"/api/v1/namespaces/cosmos/secrets/{name}": {
                    "data": {key: base64.b64encode(b"v").decode() for key in keys}
                }
                for name, keys in ((use.name, use.keys) for use in checks.SECRETS)
            },
        }


@pytest.fixture
def kubernetes() -> Iterator[Kubernetes]:
    fake = Kubernetes()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.reply(fake.answers.get(self.path, 404))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if fake.answers.get("reviews") == 403:
                self.reply(403)
                return
            assert body["spec"]["user"] == ACCOUNT
            attributes = body["spec"]["resourceAttributes"]
            allowed = (attributes["verb"], attributes["resource"]) not in fake.refused_rights
            self.reply({"status": {"allowed": allowed}})

        def reply(self, answer: Any) -> None:
            status = answer if isinstance(answer, int) else 200
            data = json.dumps({"message": "no"} if isinstance(answer, int) else answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    yield fake
    server.shutdown()
    server.server_close()


@pytest.fixture
def cluster(kubernetes: Any) -> Any:
    from kubernetes import client

    settings = client.Configuration()
    settings.host = kubernetes.url
    settings.retries = False
    return Cluster(client.ApiClient(settings), "cosmos", print, patience_s=0.1, unauthorized_s=0.1)


def bad(findings: Any) -> Any:
    return [finding for finding in findings if finding.state == "bad"]


def test_a_good_cluster_is_all_good(cluster: Any) -> None:
    for check in (checks.kubernetes, checks.secrets, checks.gpus):
        findings = list(check(cluster))
        assert findings
        assert [finding.state for finding in findings] == ["good"] * len(findings)


def test_one_kind_of_job_is_enough(cluster: Any, kubernetes: Any) -> None:
    del kubernetes.answers["/apis/trainer.kubeflow.org/v1alpha1"]
    assert not bad(checks.kubernetes(cluster))
    del kubernetes.answers["/apis/kubeflow.org/v1"]
    missing = bad(checks.kubernetes(cluster))
    assert [finding.what for finding in missing] == [
        "pytorchjobs are not installed",
        "trainjobs are not installed",
    ]
    assert "training-operator" in missing[0].advice


def test_missing_rights_are_listed(cluster: Any, kubernetes: Any) -> None:
    kubernetes.refused_rights = {("delete", "pytorchjobs"), ("list", "events")}
    found = bad(checks.kubernetes(cluster))
    assert "may not delete pytorchjobs, list events" in found[0].what
    assert "kubectl apply -k" in found[0].advice


def test_rights_that_may_not_be_asked_for_are_unsure(cluster: Any, kubernetes: Any) -> None:
    kubernetes.answers["reviews"] = 403
    states = {finding.what: finding for finding in checks.kubernetes(cluster)}
    finding = states["rights of the ServiceAccount cosmos-pipeline"]
    assert finding.state == "unsure"
    assert "kubectl auth can-i" in finding.advice


def test_secrets_must_exist_and_be_filled_in(cluster: Any, kubernetes: Any) -> None:
    root = "/api/v1/namespaces/cosmos/secrets"
    del kubernetes.answers[f"{root}/cosmos-wandb"]
    assert not bad(checks.secrets(cluster))
    kubernetes.answers[f"{root}/cosmos-huggingface"] = {
        "data": {"token": base64.b64encode(b"REPLACE").decode()}
    }
    kubernetes.answers[f"{root}/cosmos-s3"]["data"].pop("endpoint")
    texts = [finding.what for finding in bad(checks.secrets(cluster))]
    assert texts == [
        "the Secret cosmos-s3 has no endpoint",
        "the Secret cosmos-huggingface has no token",
    ]


def test_nodes_without_gpus_are_said(cluster: Any, kubernetes: Any) -> None:
    kubernetes.answers["/api/v1/nodes"]["items"][0]["status"]["allocatable"] = {}
    assert "none of 1 nodes offers nvidia.com/gpu" in bad(checks.gpus(cluster))[0].what
    kubernetes.answers["/api/v1/nodes"] = 403
    assert next(iter(checks.gpus(cluster))).state == "unsure"


def test_the_store_is_written_and_read(store_env: Any, storage_root: Any, monkeypatch: Any) -> None:
    for name, value in store_env.items():
        monkeypatch.setenv(name, value)
    assert [finding.state for finding in checks.storage(storage_root)] == ["good"]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert [finding.state for finding in checks.storage(storage_root)] == ["bad"]


@pytest.mark.parametrize(
    ("status", "state", "advice"),
    [
        (200, "good", ""),
        (302, "good", ""),
        (401, "bad", "Accept the licence"),
        (403, "bad", "set HF_TOKEN"),
        (503, "unsure", "Try again"),
    ],
)
def test_hugging_face_answers_become_advice(
    monkeypatch: Any, status: Any, state: Any, advice: Any
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    asked: list[Any] = []

    def get(method: Any, url: Any, headers: Any, **_options: Any) -> Any:
        asked.append((url, headers))
        return type("Response", (), {"status": status})

    finding = next(iter(checks.huggingface("nvidia/x", get)))
    assert finding.state == state
    assert advice in finding.advice
    assert "hf_secret" not in finding.what + finding.advice
    assert asked[0][1] == {"Authorization": "Bearer hf_secret"}


def test_the_command_fails_when_something_is_bad(
    kfp_server: Any, quick: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    result = invoke("doctor")
    assert "ok    KFP (single-user) answers" in result.output
    assert "FAIL  Kubernetes" in result.output
    assert re.search(r"\d of the checks failed", str(result.exception))


def test_the_rights_that_are_checked_are_the_ones_that_are_granted() -> None:
    roles = yaml.safe_load_all((ROOT / "manifests/base/roles.yaml").read_text())
    role = next(document for document in roles if document["metadata"]["name"] == "cosmos-launcher")
    granted = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert granted == set(checks.NEEDED_RIGHTS)
