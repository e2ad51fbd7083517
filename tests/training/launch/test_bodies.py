"""The objects that are submitted satisfy the CRDs' schemas and Pod Security `restricted`."""

import pytest
from pydantic import ValidationError

from components.lib.contract import UserError
from components.training.launch.interface import (
    Backend,
    LaunchRequest,
    SecretValue,
    Toleration,
    guide_environment,
    job_name,
)
from components.training.launch.pytorchjob import PyTorchJob
from components.training.launch.trainjob import TrainJob
from tests.servers.kubernetes import FakeKubernetes
from tests.servers.loopback import Json


@pytest.fixture
def full(request_: LaunchRequest) -> LaunchRequest:
    """A request that uses every option that both kinds have."""
    return request_.model_copy(
        update={
            "nodes": 4,
            "gpus_per_node": 8,
            "processes_per_node": None,
            "env": {"NCCL_DEBUG": "WARN"},
            "secret_env": {"WANDB_API_KEY": SecretValue(secret="w", key="api-key", optional=True)},
            "extra_resources": {"rdma/ib": "1"},
            "tolerations": (Toleration(key="nvidia.com/gpu", effect="NoSchedule"),),
            "node_selector": {"gpu": "h100"},
            "queue": "training",
            "image_pull_secrets": ("registry",),
        }
    )


def pytorch_pod(body: Json) -> tuple[Json, Json]:
    template = body["spec"]["pytorchReplicaSpecs"]["Master"]["template"]
    return template["spec"], template["spec"]["containers"][0]


def test_bodies_are_accepted_by_the_schemas(
    kubernetes: FakeKubernetes, full: LaunchRequest
) -> None:
    pytorchjob = full.model_copy(update={"priority_class": "high", "scheduler": "volcano"})
    kubernetes.create("pytorchjobs", PyTorchJob().body(pytorchjob))
    kubernetes.create("trainjobs", TrainJob().body(full))
    assert len(kubernetes.jobs) == 2


def test_every_option_arrives_in_the_pytorchjob(full: LaunchRequest) -> None:
    body = PyTorchJob().body(full.model_copy(update={"priority_class": "high"}))
    spec, container = pytorch_pod(body)
    assert body["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "training"
    assert body["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"] == 3
    assert body["spec"]["nprocPerNode"] == "8"
    assert body["spec"]["runPolicy"]["activeDeadlineSeconds"] == 3600
    assert body["spec"]["runPolicy"]["schedulingPolicy"]["minAvailable"] == 4
    assert spec["priorityClassName"] == "high"
    assert spec["nodeSelector"] == {"gpu": "h100"}
    assert spec["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]
    assert container["resources"]["limits"] == {
        "memory": "2Gi",
        "nvidia.com/gpu": "8",
        "rdma/ib": "1",
    }
    env = {item["name"]: item for item in container["env"]}
    assert env["NCCL_DEBUG"]["value"] == "WARN"
    assert env["WANDB_API_KEY"]["valueFrom"]["secretKeyRef"]["name"] == "w"


@pytest.mark.parametrize("backend", [PyTorchJob(), TrainJob()])
def test_pods_are_restricted_and_have_shared_memory(backend: Backend, full: LaunchRequest) -> None:
    body = backend.body(full)
    if isinstance(backend, PyTorchJob):
        pod, container = pytorch_pod(body)
    else:
        patch = body["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]
        jobs = patch["template"]["spec"]["replicatedJobs"]
        pod = jobs[0]["template"]["spec"]["template"]["spec"]
        container = pod["containers"][0]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    shm = {volume["name"]: volume for volume in pod["volumes"]}["shm"]
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "32Gi"}
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]


def test_a_single_node_needs_no_worker(request_: LaunchRequest) -> None:
    body = PyTorchJob().body(request_.model_copy(update={"nodes": 1}))
    assert set(body["spec"]["pytorchReplicaSpecs"]) == {"Master"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("priority_class", "high"),
        ("scheduler", "volcano"),
        ("restart_policy", "Never"),
        ("backoff_limit", 3),
        ("image_pull_policy", "Always"),
        ("keep_finished_seconds", None),
    ],
)
def test_a_trainjob_refuses_what_only_its_runtime_can_set(
    full: LaunchRequest, field: str, value: object
) -> None:
    with pytest.raises(UserError, match=f"no {field}: set it in the TrainingRuntime"):
        TrainJob().body(full.model_copy(update={field: value}))


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("name", "Bad_Name", "is not a job name"),
        ("name", "x" * 60, "is not a job name"),
        ("restart_policy", "Sometimes", "ExitCode"),
        ("memory", "64 GB", "is not a quantity"),
        ("nodes", 0, "greater than or equal to 1"),
        ("env", {"A-B": "1"}, "not a name of an environment variable"),
        ("gpus", 8, "Extra inputs"),
    ],
)
def test_mistakes_are_refused_before_anything_is_submitted(
    request_: LaunchRequest, field: str, value: object, what: str
) -> None:
    """The CRD accepts an unknown restart policy and drops unknown fields; we do not."""
    with pytest.raises(ValidationError, match=what):
        LaunchRequest.model_validate({**request_.model_dump(), field: value})


def test_the_name_depends_on_nothing_but_the_run() -> None:
    assert job_name("ab" * 32) == job_name("ab" * 32) == "cosmos-train-abababababababababab"
    assert job_name("ab" * 32) != job_name("ac" * 32)


def test_guide_variables_are_set_only_where_they_act() -> None:
    assert guide_environment(0) == {}
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in guide_environment(8)
    assert guide_environment(8, tensor_parallel=8)["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert guide_environment(8)["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
