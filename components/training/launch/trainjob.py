"""TrainJob (trainer.kubeflow.org/v1alpha1), Kubeflow's successor of PyTorchJob.

A TrainJob names a TrainingRuntime that holds the pod template; manifests/base installs one,
``cosmos-torch``, with the security context, restarts and volumes that are needed. What a request
changes goes into ``trainer`` (image, command, environment, resources: the controller refuses a
patch of these) and ``runtimePatches`` (volumes, tolerations, node selector, service account).

Restarts, the scheduler, the priority class, when images are pulled and how long a finished job is
kept belong to the runtime, so asking for them in a request is refused instead of dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.lib.contract import Progress, UserError
from components.training.launch import pods
from components.training.launch.interface import JobStatus, LaunchRequest
from components.training.launch.kinds import JOB_KINDS
from components.training.launch.pytorchjob import metadata

_REPLICATED_JOB = "node"
_OF_THE_RUNTIME = (
    "priority_class",
    "scheduler",
    "restart_policy",
    "backoff_limit",
    "image_pull_policy",
    "keep_finished_seconds",
)


class TrainJob:
    """The `Backend` for trainer.kubeflow.org/v1alpha1."""

    kind = "TrainJob"
    group, version, plural = JOB_KINDS["trainjob"].path
    container = "node"

    def body(self, request: LaunchRequest) -> dict[str, Any]:
        """A TrainJob for the request. Raises UserError for what only the runtime can set."""
        for field in _OF_THE_RUNTIME:
            if getattr(request, field) != LaunchRequest.model_fields[field].default:
                raise UserError(
                    f"A TrainJob takes no {field}: set it in the {request.runtime_kind} "
                    f"'{request.runtime}', or launch with launcher=pytorchjob."
                )
        pod: dict[str, Any] = {
            "serviceAccountName": request.service_account,
            "securityContext": pods.pod_security(),
            "terminationGracePeriodSeconds": request.grace_seconds,
            "volumes": pods.volumes(request),
            "containers": [
                {
                    "name": self.container,
                    "securityContext": pods.container_security(),
                    "volumeMounts": pods.volume_mounts(),
                }
            ],
        }
        if request.node_selector:
            pod["nodeSelector"] = dict(request.node_selector)
        if request.tolerations:
            pod["tolerations"] = pods.tolerations(request)
        if request.image_pull_secrets:
            pod["imagePullSecrets"] = [{"name": name} for name in request.image_pull_secrets]
        template = {
            "metadata": {
                "labels": pods.pod_labels(request),
                "annotations": {"sidecar.istio.io/inject": "false"},
            },
            "spec": pod,
        }
        patch = {
            "manager": "cosmos-pipelines",
            "trainingRuntimeSpec": {
                "template": {
                    "spec": {
                        "replicatedJobs": [
                            {"name": _REPLICATED_JOB, "template": {"spec": {"template": template}}}
                        ]
                    }
                }
            },
        }
        spec: dict[str, Any] = {
            "runtimeRef": {
                "apiGroup": self.group,
                "kind": request.runtime_kind,
                "name": request.runtime,
            },
            "suspend": request.suspend or request.queue is not None,
            "trainer": {
                "numNodes": request.nodes,
                "numProcPerNode": request.ranks_per_node,
                "image": request.image,
                "command": pods.torchrun(request),
                "env": pods.environment(request),
                "resourcesPerNode": pods.resources(request),
            },
            "runtimePatches": [patch],
        }
        if request.active_deadline_seconds is not None:
            spec["activeDeadlineSeconds"] = request.active_deadline_seconds
        return {
            "apiVersion": f"{self.group}/{self.version}",
            "kind": self.kind,
            "metadata": metadata(request),
            "spec": spec,
        }

    def status(self, job: Mapping[str, Any]) -> JobStatus:
        """The phase from the conditions; running when the trainer's pods are active."""
        status = job.get("status") or {}
        conditions = {
            item["type"]: item
            for item in status.get("conditions") or []
            if item.get("status") == "True"
        }
        phases: tuple[tuple[str, Any], ...] = (
            ("Complete", "succeeded"),
            ("Failed", "failed"),
            ("Suspended", "suspended"),
        )
        for condition, phase in phases:
            if condition in conditions:
                found = conditions[condition]
                detail = f"{found.get('message', '')} ({found.get('reason', '')})"
                return JobStatus(phase=phase, detail=detail)
        active = any(
            item.get("active") for item in status.get("jobsStatus") or [] if item.get("active")
        )
        return JobStatus(phase="running" if active else "created")

    def pod_selector(self, name: str) -> str:
        """The JobSet that a TrainJob makes has the TrainJob's name."""
        return (
            f"jobset.sigs.k8s.io/jobset-name={name},"
            f"jobset.sigs.k8s.io/replicatedjob-name={_REPLICATED_JOB}"
        )

    def node_index(self, pod: Mapping[str, Any]) -> int:
        """The pods are the indexed completions of one Job."""
        found = pod["metadata"].get("labels") or {}
        found = {**(pod["metadata"].get("annotations") or {}), **found}
        return int(found.get("batch.kubernetes.io/job-completion-index", 0))


def launch(request: LaunchRequest, progress: Progress) -> None:
    """Run the request as a TrainJob (see `components.training.launch.job.run_job`)."""
    from components.training.launch.job import run_job
    from components.training.launch.kube import Cluster

    run_job(TrainJob(), request, progress, Cluster.connect(request.namespace, progress.log))
