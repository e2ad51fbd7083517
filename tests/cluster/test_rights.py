"""The ServiceAccount of the steps, with its own token: what it must be able to do, and no more."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from components.training.launch.interface import LaunchRequest
from components.training.launch.pytorchjob import PyTorchJob

JOBS = "/apis/kubeflow.org/v1/namespaces/{ns}/pytorchjobs"
Status = Callable[..., int]


@pytest.fixture(scope="module")
def call(account_config: Path) -> Status:
    """Status of a call with the token of the steps' account."""
    return caller(account_config)


def caller(path: Path) -> Status:
    """A function that makes a call with the token of a KUBECONFIG; it returns the status."""
    from kubernetes import client, config
    from kubernetes.client.exceptions import ApiException

    settings = client.Configuration()
    config.load_kube_config(str(path), client_configuration=settings)
    api = client.ApiClient(settings)

    def status(
        method: str, path: str, body: Mapping[str, Any] | None = None, namespace: str = "cosmos"
    ) -> int:
        path, _, text = path.partition("?")
        query = [tuple(pair.split("=", 1)) for pair in text.split("&") if pair]
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


def test_the_launcher_s_calls_are_allowed(call: Status, node_store: str) -> None:
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
        "store": call("GET", "/api/v1/namespaces/{ns}/secrets/cosmos-s3"),
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
def test_everything_else_is_refused(call: Status, method: str, path: str) -> None:
    assert call(method, path, {} if method != "GET" else None) == 403


@pytest.mark.parametrize("path", [JOBS + "/x", "/api/v1/namespaces/{ns}/pods"])
def test_other_namespaces_are_out_of_reach(call: Status, path: str) -> None:
    assert call("GET", path, namespace="default") == 403


@pytest.mark.parametrize("account", ["cosmos-trainer", "default"])
def test_the_ranks_account_may_do_nothing(config_of: Callable[[str], Path], account: str) -> None:
    """What the steps may, with the token of an account that pods could get instead."""
    call = caller(config_of(account))
    results = {
        f"{method} {path}": call(method, path, {} if method != "GET" else None)
        for method, path in (
            ("POST", JOBS),
            ("GET", f"{JOBS}/x"),
            ("DELETE", f"{JOBS}/x"),
            ("PATCH", f"{JOBS}/x"),
            ("GET", f"{JOBS}?watch=true&timeoutSeconds=1"),
            ("GET", "/api/v1/namespaces/{ns}/pods"),
            ("GET", "/api/v1/namespaces/{ns}/pods/x/log"),
            ("GET", "/api/v1/namespaces/{ns}/events"),
            ("GET", "/api/v1/namespaces/{ns}/resourcequotas"),
            ("GET", "/api/v1/namespaces/{ns}/configmaps/kfp-launcher"),
            ("GET", "/api/v1/namespaces/{ns}/secrets/cosmos-s3"),
        )
    }
    assert set(results.values()) == {403}, results
