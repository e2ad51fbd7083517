"""The pod of a rank: what PyTorchJobs and TrainJobs have in common.

A pod satisfies Pod Security ``restricted``: no root, no capabilities, a read-only root file
system. What torch, triton and NCCL must write goes to two emptyDirs: /tmp (also HOME) on disk and
/dev/shm in memory, because Docker's default of 64 MB is too small for data loader workers.
"""

from __future__ import annotations

from typing import Any

from components.lib.training_progress import PROGRESS_VARIABLE
from components.training.launch.interface import LaunchRequest

USER = 10001
_FIXED_ENV = {
    PROGRESS_VARIABLE: "1",
    "HOME": "/tmp",  # noqa: S108 - an emptyDir of this pod alone
    "HF_HUB_OFFLINE": "1",  # ranks read from the store; nothing may wait for the internet
    "TORCHINDUCTOR_CACHE_DIR": "/tmp/inductor",  # noqa: S108
    "PYTHONUNBUFFERED": "1",
}


def torchrun(request: LaunchRequest) -> list[str]:
    """The container's command. Addresses and node rank come from PET_* variables."""
    return [
        "python",
        "-m",
        "torch.distributed.run",
        f"--nnodes={request.nodes}",
        f"--nproc-per-node={request.ranks_per_node}",
        *request.command,
    ]


def environment(request: LaunchRequest) -> list[dict[str, Any]]:
    """Kubernetes' list of variables: fixed ones, the request's, and those from Secrets."""
    values = {**_FIXED_ENV, **request.env}
    entries: list[dict[str, Any]] = [
        {"name": name, "value": value}
        for name, value in values.items()
        if name not in request.secret_env
    ]
    for name, value in request.secret_env.items():
        reference = {"name": value.secret, "key": value.key, "optional": value.optional}
        entries.append({"name": name, "valueFrom": {"secretKeyRef": reference}})
    return entries


def resources(request: LaunchRequest) -> dict[str, Any]:
    """Requests and limits. CPU has no limit: throttling a data loader starves the GPU."""
    extended = dict(request.extra_resources)
    if request.gpus_per_node:
        extended[request.gpu_resource] = str(request.gpus_per_node)
    return {
        "requests": {"cpu": request.cpu, "memory": request.memory, **extended},
        "limits": {"memory": request.memory, **extended},
    }


def volumes(request: LaunchRequest) -> list[dict[str, Any]]:
    """Shared memory, and scratch space on disk."""
    return [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": request.shared_memory}},
        {"name": "scratch", "emptyDir": {"sizeLimit": request.scratch}},
    ]


def volume_mounts() -> list[dict[str, str]]:
    """Where `volumes` are mounted."""
    return [
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
        {"name": "scratch", "mountPath": "/tmp"},  # noqa: S108
    ]


def container_security() -> dict[str, Any]:
    """What Pod Security ``restricted`` asks of a container, and a read-only root."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def pod_security() -> dict[str, Any]:
    """What Pod Security ``restricted`` asks of a pod."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def tolerations(request: LaunchRequest) -> list[dict[str, str]]:
    """Tolerations without their empty fields."""
    return [item.model_dump(exclude_none=True) for item in request.tolerations]


def pod_labels(request: LaunchRequest) -> dict[str, str]:
    """Labels that network policies select training pods by."""
    return {**request.labels, "app.kubernetes.io/name": "cosmos-train"}


def pod_spec(request: LaunchRequest, container: str) -> dict[str, Any]:
    """The whole pod, for jobs that carry a pod template."""
    spec: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "serviceAccountName": request.service_account,
        "securityContext": pod_security(),
        "terminationGracePeriodSeconds": request.grace_seconds,
        "volumes": volumes(request),
        "containers": [
            {
                "name": container,
                "image": request.image,
                "imagePullPolicy": request.image_pull_policy,
                "command": torchrun(request),
                "env": environment(request),
                "resources": resources(request),
                "securityContext": container_security(),
                "volumeMounts": volume_mounts(),
                "terminationMessagePolicy": "FallbackToLogsOnError",
            }
        ],
    }
    if request.node_selector:
        spec["nodeSelector"] = dict(request.node_selector)
    if request.tolerations:
        spec["tolerations"] = tolerations(request)
    if request.priority_class:
        spec["priorityClassName"] = request.priority_class
    if request.scheduler:
        spec["schedulerName"] = request.scheduler
    if request.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in request.image_pull_secrets]
    return spec
