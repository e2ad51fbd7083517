"""The built overlays, and the jobs that the launcher makes, pass kube-linter's checks."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from components.training.launch.interface import LaunchRequest, SecretValue, Toleration
from components.training.launch.pytorchjob import PyTorchJob

from .conftest import ROOT
from .kustomize import build
from .linter import CONTAINER_CHECKS, POD_CHECKS, SET_CHECKS, pods, problems

Documents = list[dict[str, Any]]


def launched() -> dict[str, Any]:
    """A job as the launcher makes it, put where it runs."""
    request = LaunchRequest(
        name="cosmos-train-0",
        image="registry.example/train@sha256:" + "0" * 64,
        command=("-m", "components.lib.train"),
        nodes=2,
        secret_env={"WANDB_API_KEY": SecretValue(secret="cosmos-wandb", key="api-key")},
        tolerations=(Toleration(key="nvidia.com/gpu"),),
    )
    body = PyTorchJob().body(request)
    body["metadata"]["namespace"] = "cosmos"
    return body


def test_the_overlays_and_the_jobs_beside_them_are_clean(overlay: Documents) -> None:
    assert len(list(pods(overlay))) >= 1
    assert problems([*overlay, launched()]) == []


@pytest.fixture
def everything_at_once() -> Documents:
    """Every base and component in one set."""
    documents = build(ROOT / "overlays" / "single-node")
    names = {(d["kind"], d["metadata"]["name"]) for d in documents}
    for part in ("trainer", "kueue", "wandb"):
        documents += build(ROOT / "components" / part)
    assert len(names) < len(documents)
    return [*documents, launched()]


def test_all_components_go_together(everything_at_once: Documents) -> None:
    assert problems(everything_at_once) == []


def find(documents: Documents, kind: str, name: str) -> dict[str, Any]:
    return next(d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name)


def pod(documents: Documents) -> dict[str, Any]:
    return find(documents, "StatefulSet", "seaweedfs")["spec"]["template"]["spec"]


def container(documents: Documents) -> dict[str, Any]:
    return pod(documents)["containers"][0]


def job(documents: Documents) -> dict[str, Any]:
    return find(documents, "Job", "make-bucket")


def security(documents: Documents) -> dict[str, Any]:
    return container(documents)["securityContext"]


BREAKS: dict[str, Callable[[Documents], Any]] = {
    "host-namespaces": lambda d: pod(d).update(hostPID=True),
    "sensitive-host-mounts": lambda d: pod(d)["volumes"].append(
        {"name": "docker", "hostPath": {"path": "/var/run/docker.sock"}}
    ),
    "deprecated-service-account-field": lambda d: pod(d).update(serviceAccount="seaweedfs"),
    "default-service-account": lambda d: pod(d).pop("serviceAccountName"),
    "automounted-token": lambda d: pod(d).pop("automountServiceAccountToken"),
    "unsafe-sysctls": lambda d: pod(d)["securityContext"].update(sysctls=[{"name": "kernel.shm"}]),
    "job-ttl-seconds-after-finished": lambda d: job(d)["spec"].pop("ttlSecondsAfterFinished"),
    "mismatching-selector": lambda d: find(d, "StatefulSet", "seaweedfs")["spec"]["selector"][
        "matchLabels"
    ].update(app="other"),
    "latest-tag": lambda d: container(d).update(image="registry.example:5000/seaweedfs"),
    "run-as-root": lambda d: security(d).update(runAsUser=0),
    "privileged-container": lambda d: security(d).update(privileged=True),
    "privilege-escalation-container": lambda d: security(d).pop("allowPrivilegeEscalation"),
    "drop-capabilities": lambda d: security(d)["capabilities"].update(add=["NET_RAW"]),
    "no-read-only-root-fs": lambda d: security(d).update(readOnlyRootFilesystem=False),
    "unsafe-proc-mount": lambda d: security(d).update(procMount="Unmasked"),
    "unset-requirements": lambda d: container(d)["resources"]["requests"].pop("cpu"),
    "duplicate-env-var": lambda d: container(d)["env"].append(dict(container(d)["env"][0])),
    "env-var-secret": lambda d: container(d)["env"].append({"name": "DB_PASSWORD", "value": "x"}),
    "probe-ports": lambda d: container(d)["livenessProbe"]["httpGet"].update(port=9999),
    "ssh-port": lambda d: container(d)["ports"].append({"name": "ssh", "containerPort": 22}),
    "mounted-volumes": lambda d: container(d)["volumeMounts"].append(
        {"name": "tmp", "mountPath": "/etc"}
    ),
    "dangling-service": lambda d: find(d, "Service", "seaweedfs")["spec"]["ports"][0].update(
        targetPort="s4"
    ),
    "non-existent-service-account": lambda d: d.remove(find(d, "ServiceAccount", "cosmos-trainer")),
    "non-existent-role": lambda d: d.remove(find(d, "Role", "cosmos-launcher")),
    "wildcard-in-rules": lambda d: find(d, "Role", "cosmos-launcher")["rules"][0]["verbs"].append(
        "*"
    ),
    "non-isolated-pod": lambda d: d.remove(find(d, "NetworkPolicy", "default-deny")),
    "unnamed-namespace": lambda d: find(d, "Role", "cosmos-launcher")["metadata"].update(
        namespace="defualt"
    ),
    "duplicates": lambda d: d.append(copy.deepcopy(find(d, "Role", "cosmos-launcher"))),
}


@pytest.mark.parametrize("name", BREAKS)
def test_each_check_can_fail(name: str, everything_at_once: Documents) -> None:
    """An oracle that cannot fail proves nothing."""
    documents = copy.deepcopy(everything_at_once)
    BREAKS[name](documents)
    assert {problem.split(":")[0] for problem in problems(documents)} == {name} | (
        {"non-existent-service-account"} if name == "default-service-account" else set()
    )


def test_every_check_has_been_seen_to_fail() -> None:
    checks = [*POD_CHECKS, *CONTAINER_CHECKS, *SET_CHECKS]
    assert {check.__name__.replace("_", "-") for check in checks} == set(BREAKS)
