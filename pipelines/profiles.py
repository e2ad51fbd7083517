"""What a stage asks of its surroundings, in KFP's calls: resources, retries, caching, secrets.

What that is stands in the stage's config.py (`components.lib.resources`).

`CLUSTER` is compiled into the YAML. A profile without a cluster asks for nothing, because the local
runner has nothing to give and would retry a user's mistake three times before saying so.
"""

from __future__ import annotations

from collections.abc import Mapping

from kfp import dsl, kubernetes
from pydantic import Field

from components.harness.stages import stage_named
from components.lib.contract import Frozen
from components.lib.environment import GPU_TYPE, RUN_ID
from components.lib.resources import Resources
from components.training.launch.interface import GPU_PRODUCT, GPU_TAINT
from components.training.launch.names import HUGGINGFACE, STORE, WANDB


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
    stage: str,
    *,
    cached: bool = True,
    environment: Mapping[str, str] | None = None,
) -> dsl.PipelineTask:
    """Give a task what its stage asks for; ``cached=False`` where a pipeline wants no cache.

    ``environment`` is what the pipeline tells this task besides.
    """
    resources = stage_named(stage).resources
    return place_with(task, profile, resources, cached=cached, environment=environment)


def place_with(
    task: dsl.PipelineTask,
    profile: Profile,
    resources: Resources,
    *,
    cached: bool = True,
    environment: Mapping[str, str] | None = None,
) -> dsl.PipelineTask:
    """`place` with resources of the caller's: those of the run report, which is no listed stage."""
    task.set_caching_options(cached and resources.cached)
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
    if "huggingface" in resources.secrets:
        kubernetes.add_pod_label(task, "cosmos-pipelines.dev/egress", "huggingface")
        kubernetes.use_secret_as_env(
            task,
            secret_name=HUGGINGFACE.name,
            secret_key_to_env=HUGGINGFACE.variables,
            optional=True,
        )
    if "wandb" in resources.secrets:
        kubernetes.use_secret_as_env(
            task,
            secret_name=WANDB.name,
            secret_key_to_env=WANDB.variables,
            optional=True,
        )
    return task
