"""The ServiceAccount of the steps, with its own token: what it must be able to do, and no more."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.training.launch.interface import LaunchRequest
from components.training.launch.pytorchjob import PyTorchJob

JOBS = "/apis/kubeflow.org/v1/namespaces/{ns}/pytorchjobs"


@pytest.fixture(scope="module")
def call(account_config: Path) -> Any:
    """Status of a call with the account's token."""
    from kubernetes import client, config
    from kubernetes.client.exceptions import ApiException

    settings = client.Configuration()
    config.load_kube_config(str(account_config), client_configuration=settings)
    api = client.ApiClient(settings)

    def status(method: str, path: str, body: Any = None, namespace: str = "cosmos") -> int:
        query = []
        if "?" in path:
            path, _, text = path.partition("?")
            query = [tuple(pair.split("=", 1)) for pair in text.split("&")]
        headers = {"Content-Type": "application/json"}
        if method == "PATCH":
            headers["Content-Type"] = "application/merge-patch+json"
        try:
            answer = api.call_api(
                path.format(ns=namespace),
                method,
                query_params=query,
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
                response_type="object",
                _request_timeout=20,
            )
        except ApiException as error:
            return int(error.status)
        return int(answer[1])

    return status


def test_the_launcher_s_calls_are_allowed(call: Any) -> None:
    name = f"r-{uuid.uuid4().hex[:8]}"
    request = LaunchRequest(name=name, image="none", command=("-c", "pass"), suspend=True)
    body = PyTorchJob().body(request)
    results = {
        "create": call("POST", JOBS + "?fieldValidation=Strict", body),
        "get": call("GET", f"{JOBS}/{name}"),
        "watch": call("GET", f"{JOBS}?watch=true&timeoutSeconds=1"),
        "patch": call("PATCH", f"{JOBS}/{name}", {"metadata": {"annotations": {"a": "b"}}}),
        "delete": call("DELETE", f"{JOBS}/{name}"),
        "pods": call("GET", "/api/v1/namespaces/{ns}/pods"),
        "events": call("GET", "/api/v1/namespaces/{ns}/events"),
        "quotas": call("GET", "/api/v1/namespaces/{ns}/resourcequotas"),
        "kfp": call("GET", "/api/v1/namespaces/{ns}/configmaps/kfp-launcher"),
    }
    assert all(status in (200, 201) for status in results.values()), results
    # Allowed, but there is nothing of that name or kind: not a refusal.
    assert call("GET", "/api/v1/namespaces/{ns}/pods/none/log") == 404
    trainjobs = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/{ns}/trainjobs"
    assert call("GET", f"{trainjobs}/none") == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/namespaces/{ns}/secrets"),
        ("GET", "/api/v1/namespaces/{ns}/secrets/cosmos-huggingface"),
        ("GET", "/api/v1/namespaces/{ns}/configmaps"),
        ("GET", "/api/v1/namespaces/{ns}/pods/x"),
        ("POST", "/api/v1/namespaces/{ns}/pods"),
        ("DELETE", "/api/v1/namespaces/{ns}/pods/x"),
        ("POST", "/api/v1/namespaces/{ns}/pods/x/exec"),
        ("GET", JOBS),
        ("DELETE", JOBS),
        ("PUT", JOBS + "/x"),
        ("PATCH", JOBS + "/x/status"),
        ("POST", "/apis/apps/v1/namespaces/{ns}/deployments"),
        ("POST", "/apis/batch/v1/namespaces/{ns}/jobs"),
        ("POST", "/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}/rolebindings"),
        ("POST", "/api/v1/namespaces/{ns}/serviceaccounts/cosmos-pipeline/token"),
        ("PATCH", "/api/v1/namespaces/{ns}/resourcequotas/cosmos"),
        ("GET", "/api/v1/nodes"),
        ("GET", "/api/v1/namespaces"),
    ],
)
def test_everything_else_is_refused(call: Any, method: str, path: str) -> None:
    assert call(method, path, {} if method != "GET" else None) == 403


@pytest.mark.parametrize("path", [JOBS + "/x", "/api/v1/namespaces/{ns}/pods"])
def test_other_namespaces_are_out_of_reach(call: Any, path: str) -> None:
    assert call("GET", path, namespace="default") == 403


def test_the_ranks_account_may_do_nothing(applied: None) -> None:
    from .conftest import kubectl

    account = "system:serviceaccount:cosmos:cosmos-trainer"
    rules = kubectl("get", "rolebindings", "-n", "cosmos", "-o", "yaml")
    subjects = [
        subject["name"]
        for binding in yaml.safe_load(rules)["items"]
        for subject in binding["subjects"]
    ]
    assert "cosmos-trainer" not in subjects, account
