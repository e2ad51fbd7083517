"""What a launcher is asked and how it answers, whichever machinery runs the training.

A `LaunchRequest` describes one distributed job: what torchrun runs, on how many nodes, with what
of everything. Its name comes from the content address of the run (`job_name`), so a step that is
tried again asks for the same job and finds it instead of starting a second one.

A `Backend` knows one kind of Kubernetes job: how a request becomes its body and how its status
becomes a `JobStatus`. Everything else (creating, following, explaining, cancelling) is shared.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from pydantic import Field, field_validator, model_validator

from components.lib import environment
from components.lib.contract import Frozen, Progress
from components.training.launch.names import RANK_ACCOUNT

RESTART_POLICIES = ("Always", "ExitCode", "Never", "OnFailure")
PREFIX = "cosmos-pipelines.dev/"
REQUEST_ANNOTATION = PREFIX + "request"
PROGRESS_ANNOTATION = PREFIX + "progress"
RUN_LABEL = PREFIX + "run"
# Nodes with GPUs carry this taint; the label, of NVIDIA's GPU operator, names the kind of GPU.
GPU_TAINT = "nvidia.com/gpu"
GPU_PRODUCT = "nvidia.com/gpu.product"
NAME_LABEL = "app.kubernetes.io/name"
NAME_LIMIT = 46  # leaves room for "-worker-12345" and more in a 63 character host name

_NAME = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
_QUANTITY = re.compile(r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")
_LABEL_VALUE = re.compile(r"^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")
_VARIABLE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")


class SecretValue(Frozen):
    """One key of a Kubernetes Secret. Values of secrets never enter a request."""

    secret: str
    key: str
    optional: bool = False


class Toleration(Frozen):
    """A taint that the pods tolerate, in Kubernetes' own words."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class LaunchRequest(Frozen):
    """One distributed training job.

    ``command`` is what torchrun runs, for example ``("-m", "components.lib.train", …)``; each of
    ``nodes`` pods runs torchrun with ``processes_per_node`` ranks. Memory is request and limit,
    and ``shared_memory`` (/dev/shm, a Memory volume) counts towards it.
    """

    name: str = Field(description="Name of the job; the same for every try of the same run.")
    image: str = Field(description="Training image; releases name it by digest.", min_length=1)
    command: tuple[str, ...] = Field(description="What torchrun runs.", min_length=1)
    namespace: str | None = Field(default=None, description="Namespace; None: the step's own.")
    env: dict[str, str] = Field(
        default={}, description="Environment of every rank; no secrets here."
    )
    secret_env: dict[str, SecretValue] = Field(
        default={}, description="Variables that Secrets fill."
    )
    nodes: int = Field(default=1, ge=1, description="Pods of the job.")
    gpus_per_node: int = Field(default=8, ge=0, description="GPUs of each pod; 0 trains on CPUs.")
    gpu_resource: str = Field(default="nvidia.com/gpu", description="Resource name of a GPU.")
    processes_per_node: int | None = Field(
        default=None, ge=1, description="Ranks in each pod; None: one per GPU, or one."
    )
    cpu: str = Field(default="16", description="CPU request of each pod.")
    memory: str = Field(default="256Gi", description="Memory request and limit of each pod.")
    shared_memory: str = Field(default="32Gi", description="Size of /dev/shm, part of the memory.")
    scratch: str = Field(default="200Gi", description="Size limit of the scratch volume at /tmp.")
    extra_resources: dict[str, str] = Field(
        default={}, description="More limits, e.g. rdma/ib: '1'."
    )
    tolerations: tuple[Toleration, ...] = ()
    node_selector: dict[str, str] = Field(default={}, description="Labels that a node must have.")
    priority_class: str | None = None
    queue: str | None = Field(default=None, description="Kueue LocalQueue that admits the job.")
    scheduler: str | None = Field(default=None, description="Scheduler of the pods (volcano, …).")
    service_account: str = Field(default=RANK_ACCOUNT, description="ServiceAccount of the ranks.")
    image_pull_secrets: tuple[str, ...] = ()
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    restart_policy: Literal["Always", "ExitCode", "Never", "OnFailure"] = "OnFailure"
    backoff_limit: int = Field(
        default=10, ge=0, description="Restarts before the job counts as failed."
    )
    active_deadline_seconds: int | None = Field(default=None, ge=1, description="Longest run time.")
    grace_seconds: int = Field(default=60, ge=0, description="Time for a checkpoint after SIGTERM.")
    start_timeout_seconds: int = Field(
        default=1800,
        ge=0,
        description="Give up when no rank has started after this; 0: wait for ever.",
    )
    keep_finished_seconds: int | None = Field(
        default=86400, ge=0, description="Delete a finished job after this; None keeps it."
    )
    delete_on_success: bool = Field(
        default=False, description="Delete the job as soon as it succeeded."
    )
    runtime: str = Field(default="cosmos-torch", description="TrainingRuntime of a TrainJob.")
    runtime_kind: Literal["TrainingRuntime", "ClusterTrainingRuntime"] = "TrainingRuntime"
    labels: dict[str, str] = {}
    suspend: bool = Field(default=False, description="Create the job suspended.")

    @field_validator("name")
    @classmethod
    def _valid_name(cls, value: str) -> str:
        if not _NAME.match(value) or len(value) > NAME_LIMIT:
            raise ValueError(
                f"'{value}' is not a job name: at most {NAME_LIMIT} lower-case letters, digits "
                "and dashes, with a letter first"
            )
        return value

    @field_validator("cpu", "memory", "shared_memory", "scratch")
    @classmethod
    def _valid_quantity(cls, value: str) -> str:
        if not _QUANTITY.match(value):
            raise ValueError(f"'{value}' is not a quantity such as 500m, 16 or 64Gi")
        return value

    @model_validator(mode="after")
    def _valid_environment(self) -> LaunchRequest:
        for variable in (*self.env, *self.secret_env):
            if not _VARIABLE.match(variable):
                raise ValueError(f"'{variable}' is not a name of an environment variable")
        if both := sorted(set(self.env) & set(self.secret_env)):
            raise ValueError(f"{', '.join(both)} is set both plainly and from a Secret")
        return self

    @property
    def ranks_per_node(self) -> int:
        """Processes that torchrun starts in each pod."""
        return self.processes_per_node or max(self.gpus_per_node, 1)

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """``field old -> new`` for each field that differs from a recorded request."""
        mine = self.model_dump(mode="json")
        return [
            f"{field} {other.get(field)!r} -> {mine[field]!r}"
            for field in mine
            if other.get(field) != mine[field]
        ]


class JobStatus(Frozen):
    """Where a job is. ``detail`` is the controller's own sentence."""

    phase: Literal["created", "running", "restarting", "suspended", "succeeded", "failed"]
    detail: str = ""

    @property
    def finished(self) -> bool:
        """Whether nothing will happen to the job any more."""
        return self.phase in ("succeeded", "failed")


class Backend(Protocol):
    """One kind of Kubernetes training job."""

    kind: str
    group: str
    version: str
    plural: str
    container: str

    def body(self, request: LaunchRequest) -> dict[str, Any]:
        """The object to create. Raises UserError for what this kind cannot do."""

    def status(self, job: Mapping[str, Any]) -> JobStatus:
        """Where the job is, from its conditions."""

    def pod_selector(self, name: str) -> str:
        """Label selector of the job's pods."""

    def node_index(self, pod: Mapping[str, Any]) -> int:
        """Which node of the job a pod is; 0 runs rank 0."""


class Launcher(Protocol):
    """Runs a training job to its end: `process`, `pytorchjob` and `trainjob` all do."""

    def __call__(self, request: LaunchRequest, progress: Progress) -> None:
        """Return when training succeeded. Raises UserError with the last lines when it failed."""


def job_name(address: str) -> str:
    """Name of the job that trains the run with this content address."""
    return f"cosmos-train-{address[:20]}"


def run_labels() -> dict[str, str]:
    """The label that ties a job to the KFP run of this step; empty outside KFP."""
    run = os.environ.get(environment.RUN_ID, "")
    return {RUN_LABEL: run} if _LABEL_VALUE.match(run) else {}


def guide_environment(gpus_per_node: int, tensor_parallel: int = 1) -> dict[str, str]:
    """Environment that NVIDIA's guides set, where it has an effect here.

    CUDA_DEVICE_MAX_CONNECTIONS=1 orders the communication of tensor and sequence parallelism
    before the matrix products; with FSDP alone it would only stop them from overlapping, so it
    is left out. The guides' NVTE_FUSED_ATTN acts on TransformerEngine, which is not used.
    """
    if not gpus_per_node:
        return {}
    env = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    if tensor_parallel > 1:
        env["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    return env
