"""What a task asks of its surroundings: resources, retries, caching, secrets.

`CLUSTER` is compiled into the YAML. A profile without a cluster asks for nothing, because the local
runner has nothing to give and would retry a user's mistake three times before saying so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from kfp import dsl, kubernetes
from pydantic import Field

from components.lib.contract import Frozen
from components.lib.environment import GPU_TYPE, RUN_ID
from components.training.launch.interface import GPU_PRODUCT, GPU_TAINT
from components.training.launch.names import HUGGINGFACE, STORE, WANDB

Secret = Literal["huggingface", "wandb"]


class Resources(Frozen):
    """Requests of one task. ``memory`` is also the limit; CPU, which throttles, has none."""

    cpu: str
    memory: str
    gpus: int = 0
    retries: int = 2
    timeout_hours: int = 24


class Profile(Frozen):
    """Where a pipeline runs.

    ``gpu_type`` is a value of the node label nvidia.com/gpu.product, which NVIDIA's GPU operator
    sets: steps and training jobs with GPUs go to such nodes only. ``encode_pods`` pods share the
    encoding of latents; their number shapes the graph, so it is no parameter of a run.
    """

    cluster: bool
    gpu_type: str | None = None
    encode_pods: int = Field(default=1, ge=1)


CLUSTER = Profile(cluster=True)


def place(
    task: dsl.PipelineTask,
    profile: Profile,
    resources: Resources,
    *,
    cached: bool = True,
    secrets: tuple[Secret, ...] = (),
    environment: Mapping[str, str] | None = None,
) -> dsl.PipelineTask:
    """Give a task its caching choice and, on a cluster, everything else it asks for.

    KFP's cache key covers neither bucket contents nor secrets, so a stage whose result the world
    decides (discovery, promotion) must say ``cached=False``.
    """
    task.set_caching_options(cached)
    if not profile.cluster:
        return task
    task.set_cpu_request(resources.cpu)
    task.set_memory_request(resources.memory)
    task.set_memory_limit(resources.memory)
    task.set_retry(
        resources.retries,
        backoff_duration="60s",
        backoff_factor=2.0,
        backoff_max_duration="900s",
    )
    if resources.gpus:
        task.set_accelerator_type("nvidia.com/gpu")
        task.set_accelerator_limit(resources.gpus)
        kubernetes.empty_dir_mount(task, volume_name="shm", mount_path="/dev/shm", medium="Memory")  # noqa: S108
        # nodes with GPUs are usually closed to everything else by this taint
        kubernetes.add_toleration(task, key=GPU_TAINT, operator="Exists", effect="NoSchedule")
        if profile.gpu_type:
            kubernetes.add_node_selector(task, GPU_PRODUCT, profile.gpu_type)
    if profile.gpu_type:
        task.set_env_variable(GPU_TYPE, profile.gpu_type)  # for the jobs of training
    for name, value in (environment or {}).items():
        task.set_env_variable(name, value)
    # by this id `status` finds a run's training job and `cancel` what is left of it
    kubernetes.use_field_path_as_env(task, RUN_ID, "metadata.labels['pipeline/runid']")
    kubernetes.set_timeout(task, resources.timeout_hours * 3600)
    kubernetes.set_security_context(
        task, run_as_user=10001, run_as_group=10001, run_as_non_root=True
    )
    kubernetes.empty_dir_mount(task, volume_name="scratch", mount_path="/tmp")  # noqa: S108
    kubernetes.use_secret_as_env(task, secret_name=STORE.name, secret_key_to_env=STORE.variables)
    if "huggingface" in secrets:
        kubernetes.add_pod_label(task, "cosmos-pipelines.dev/egress", "huggingface")
        kubernetes.use_secret_as_env(
            task,
            secret_name=HUGGINGFACE.name,
            secret_key_to_env=HUGGINGFACE.variables,
            optional=True,
        )
    if "wandb" in secrets:
        kubernetes.use_secret_as_env(
            task,
            secret_name=WANDB.name,
            secret_key_to_env=WANDB.variables,
            optional=True,
        )
    return task


FETCH = Resources(cpu="4", memory="16Gi", retries=5)
DISCOVER = Resources(cpu="8", memory="8Gi")
SHARD = Resources(cpu="8", memory="16Gi")
EMBED = Resources(cpu="4", memory="48Gi", gpus=1)
ENCODE = Resources(cpu="16", memory="64Gi", gpus=1, timeout_hours=72)
LAUNCH = Resources(cpu="1", memory="2Gi", timeout_hours=240)
EVALUATE = Resources(cpu="8", memory="64Gi", gpus=1)
PROMOTE = Resources(cpu="1", memory="4Gi")
