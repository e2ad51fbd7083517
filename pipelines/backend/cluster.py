"""What the commands see of a run in Kubernetes: its training jobs, their progress, step logs.

Optional: without access to the cluster the commands do what KFP alone allows, and say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from components.lib.contract import UserError
from components.lib.training_progress import TrainingProgress
from components.training.launch.follow import moment
from components.training.launch.interface import PROGRESS_ANNOTATION, RUN_LABEL
from components.training.launch.kinds import JOB_KINDS
from components.training.launch.kube import ApiError, Cluster

STEP_CONTAINER = "main"
_ALIVE = (None, "Pending", "Running", "Unknown")


def connect(namespace: str | None, say: Callable[[str], None]) -> Cluster:
    """The cluster of KUBECONFIG, with little patience: a person is waiting."""
    cluster = Cluster.connect(namespace, say)
    cluster.patience_s = 15.0
    cluster.unauthorized_s = 5.0
    return cluster


def training_jobs(cluster: Cluster, run_id: str) -> Iterator[tuple[tuple[str, str, str], Any]]:
    """(kind, job) of every training job that a run started."""
    for job_kind in JOB_KINDS.values():
        kind = job_kind.path
        group, version, plural = kind
        try:
            jobs = cluster.find(plural, group, version, labelSelector=f"{RUN_LABEL}={run_id}")
        except ApiError as error:
            if error.status == 404:  # this kind of job is not installed
                continue
            raise
        for job in jobs:
            yield kind, job


def delete_jobs(cluster: Cluster, run_id: str) -> list[str]:
    """Delete the training jobs of a run; their names."""
    names = []
    for kind, job in list(training_jobs(cluster, run_id)):
        names.append(str(job["metadata"]["name"]))
        cluster.delete(*kind, names[-1])
    return names


def progress_line(cluster: Cluster, run_id: str) -> str | None:
    """How far the training of a run is, from the job's annotation."""
    for _, job in training_jobs(cluster, run_id):
        text = (job["metadata"].get("annotations") or {}).get(PROGRESS_ANNOTATION)
        if text:
            return f"training: {TrainingProgress.model_validate_json(text).words()}"
    return None


def step_log(cluster: Cluster, pods: tuple[str, ...], follow: bool, tail: int) -> Iterator[str]:
    """Lines of a step's working container. Raises UserError when its pod is gone."""
    for pod in reversed(pods):
        try:
            if follow:
                yield from _follow(cluster, pod)
            else:
                yield from cluster.log_lines(pod, STEP_CONTAINER, tail)
            return
        except ApiError as error:
            if error.status not in (400, 404):  # a driver's pod has no such container
                raise
    raise UserError(
        "The step's pod is not there any more (or has not started). KFP keeps the logs of "
        "finished steps in the run's page when its store archives them."
    )


def _follow(cluster: Cluster, pod: str) -> Iterator[str]:
    """Lines of a pod's log until it ends. A stream that breaks, or falls silent for so long that
    something in between may have dropped it, is opened again after the last line seen."""
    from urllib3.exceptions import HTTPError

    seen = ("", 0)
    while True:
        try:
            since = f"{seen[0]}Z" if seen[0] else None
            for line in cluster.follow_log(pod, STEP_CONTAINER, since):
                stamp, _, text = line.partition(" ")
                if moment(stamp) > seen:
                    seen = moment(stamp)
                    yield text
        except ApiError:
            if not seen[0]:
                raise
        except (HTTPError, OSError):
            pass
        pods = cluster.find("pods", fieldSelector=f"metadata.name={pod}")
        if all((item.get("status") or {}).get("phase") not in _ALIVE for item in pods):
            return
        cluster.sleep(1.0)
