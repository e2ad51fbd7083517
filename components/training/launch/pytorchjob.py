"""PyTorchJob (kubeflow.org/v1): one Master and ``nodes - 1`` Workers, one pod each.

cleanPodPolicy is ``Running``: with the operator's default the pods of a failed job go on being
restarted by the kubelet and keep their GPUs. What the pods said is kept by the launcher, which
reads their last lines while they are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.lib.contract import Progress
from components.training.launch.interface import (
    NAME_LABEL,
    REQUEST_ANNOTATION,
    JobStatus,
    LaunchRequest,
    run_labels,
)
from components.training.launch.kinds import JOB_KINDS
from components.training.launch.pods import pod_labels, pod_spec

_LABEL = "training.kubeflow.org/"


class PyTorchJob:
    """The `Backend` for kubeflow.org/v1."""

    kind = "PyTorchJob"
    group, version, plural = JOB_KINDS["pytorchjob"].path
    container = "pytorch"

    def body(self, request: LaunchRequest) -> dict[str, Any]:
        """A PyTorchJob for the request."""
        replica = {
            "restartPolicy": request.restart_policy,
            "template": {
                # A service mesh's sidecar never ends, and with it the job would never end.
                "metadata": {
                    "labels": pod_labels(request),
                    "annotations": {"sidecar.istio.io/inject": "false"},
                },
                "spec": pod_spec(request, self.container),
            },
        }
        replicas: dict[str, Any] = {"Master": {"replicas": 1, **replica}}
        if request.nodes > 1:
            replicas["Worker"] = {"replicas": request.nodes - 1, **replica}
        policy: dict[str, Any] = {
            "backoffLimit": request.backoff_limit,
            "cleanPodPolicy": "Running",
            "suspend": request.suspend or request.queue is not None,
            "schedulingPolicy": {"minAvailable": request.nodes},
        }
        if request.active_deadline_seconds is not None:
            policy["activeDeadlineSeconds"] = request.active_deadline_seconds
        if request.keep_finished_seconds is not None:
            policy["ttlSecondsAfterFinished"] = request.keep_finished_seconds
        if request.priority_class:
            policy["schedulingPolicy"]["priorityClass"] = request.priority_class
        return {
            "apiVersion": f"{self.group}/{self.version}",
            "kind": self.kind,
            "metadata": metadata(request),
            "spec": {
                "nprocPerNode": str(request.ranks_per_node),
                "runPolicy": policy,
                "pytorchReplicaSpecs": replicas,
            },
        }

    def status(self, job: Mapping[str, Any]) -> JobStatus:
        """The phase from the conditions that are true, the decisive ones first."""
        conditions = {
            item["type"]: item
            for item in (job.get("status") or {}).get("conditions") or []
            if item.get("status") == "True"
        }
        phases: tuple[tuple[str, Any], ...] = (
            ("Succeeded", "succeeded"),
            ("Failed", "failed"),
            ("Suspended", "suspended"),
            ("Restarting", "restarting"),
            ("Running", "running"),
        )
        for condition, phase in phases:
            if condition in conditions:
                found = conditions[condition]
                detail = f"{found.get('message', '')} ({found.get('reason', '')})"
                return JobStatus(phase=phase, detail=detail)
        return JobStatus(phase="created")

    def pod_selector(self, name: str) -> str:
        """The operator labels pods with the job's name."""
        return f"{_LABEL}job-name={name}"

    def node_index(self, pod: Mapping[str, Any]) -> int:
        """Master is 0, worker N is N + 1."""
        labels = pod["metadata"].get("labels") or {}
        index = int(labels.get(_LABEL + "replica-index", 0))
        return index if labels.get(_LABEL + "replica-type") == "master" else index + 1


def metadata(request: LaunchRequest) -> dict[str, Any]:
    """Name, labels (Kueue's queue among them) and the request itself, for re-attaching."""
    labels = {**request.labels, **run_labels(), NAME_LABEL: "cosmos-train"}
    if request.queue:
        labels["kueue.x-k8s.io/queue-name"] = request.queue
    return {
        "name": request.name,
        "labels": labels,
        "annotations": {REQUEST_ANNOTATION: request.model_dump_json()},
    }


def launch(request: LaunchRequest, progress: Progress) -> None:
    """Run the request as a PyTorchJob (see `components.training.launch.job.run_job`)."""
    from components.training.launch.job import run_job
    from components.training.launch.kube import Cluster

    run_job(PyTorchJob(), request, progress, Cluster.connect(request.namespace, progress.log))
