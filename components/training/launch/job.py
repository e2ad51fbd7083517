"""Run a training job on Kubernetes to its end, whichever kind of job it is.

Level triggered: each round reads the job and its pods and says what changed. Nothing depends on
having seen an event, so the launcher may be killed and started again at any time; it finds its
job by name. One that runs is attached to; one that somebody is training with other settings is an
error that names them. One that had ended before is replaced: a launcher is asked only while the
run's results are missing, so it either failed (its ranks go on from their last checkpoint) or
its results were removed from the store.

SIGTERM means that the step was cancelled: the job is deleted, whatever the launcher is doing at
that moment (`cancelling`). A launcher that is killed outright cannot do that;
``active_deadline_seconds`` and the pipeline's run label are the net below it.
"""

from __future__ import annotations

import contextlib
import copy
import json
import threading
import time
from collections.abc import Mapping
from typing import Any

from components.lib.contract import Frozen, Progress, UserError
from components.training.launch import explain
from components.training.launch.cancelling import cancelling
from components.training.launch.follow import LogFollower
from components.training.launch.interface import (
    PROGRESS_ANNOTATION,
    REQUEST_ANNOTATION,
    Backend,
    JobStatus,
    LaunchRequest,
    run_labels,
)
from components.training.launch.kube import ApiError, Cluster

_LINES = 20
_READ = 200
# Cancelling fits into the 30 s that Kubernetes gives a pod to end.
_CREATION_S = 8.0
_DELETION_S = 20.0
_ANSWER_S = 5.0
# A change of these makes it another run of the same job, not another job.
_HARMLESS = frozenset({"labels", "start_timeout_seconds", "delete_on_success", "grace_seconds"})


class Timing(Frozen):
    """Seconds between looks, and how long causes of not starting are given to go away."""

    poll_s: float = 5.0
    hopeless_s: float = 120.0
    image_pull_s: float = 300.0
    no_pods_s: float = 20.0
    annotate_s: float = 15.0
    log_pause_s: float = 1.0


def run_job(
    backend: Backend,
    request: LaunchRequest,
    progress: Progress,
    cluster: Cluster,
    timing: Timing | None = None,
) -> None:
    """Create or find the job, follow it, return when it succeeded.

    Raises UserError with the reason and the last lines when it failed, was deleted, or could not
    start. On SIGTERM or Ctrl-C the job is deleted and the process exits with 143 or 130.
    """
    run = _Run(backend, request, progress, cluster, timing or Timing())
    with cancelling(run.cancel):
        run.attach()
        run.follow()


class _Run:
    def __init__(
        self,
        backend: Backend,
        request: LaunchRequest,
        progress: Progress,
        cluster: Cluster,
        timing: Timing,
    ) -> None:
        self.backend, self.request, self.progress = backend, request, progress
        self.cluster, self.timing = cluster, timing
        self.kind = (backend.group, backend.version, backend.plural)
        self.title = f"{backend.kind} {cluster.namespace}/{request.name}"
        self.follower = LogFollower(cluster, backend, progress.log, timing.log_pause_s)
        self.endings: dict[tuple[str, int], tuple[explain.Ending, str]] = {}
        self.said = ""
        self.phase = ""
        self.waiting_since: float | None = None
        self.annotated = ""
        self.annotated_at = 0.0
        self.attached = False
        self.cancelled = False
        self.creating = threading.Lock()

    # -- one job, whoever created it ---------------------------------------------------------

    def attach(self) -> None:
        """Create the job, or find the one of an earlier try."""
        body = self.backend.body(self.request)
        deadline = time.monotonic() + self.cluster.patience_s
        while True:
            job = self.cluster.get(*self.kind, self.request.name)
            if job is None:
                try:
                    self._create(body)
                except ApiError as error:
                    if error.status != 409 or time.monotonic() > deadline:
                        raise
                    self.cluster.sleep(0.5)  # it exists by now, or two writers met: look again
                    continue
                self.progress.log(
                    f"created {self.title}: {self.request.nodes} x "
                    f"{self.request.ranks_per_node} ranks, image {self.request.image}"
                )
                return
            status = self.backend.status(job)
            if job["metadata"].get("deletionTimestamp"):
                self.say(f"{self.title} of an earlier try is being deleted; waiting for that")
                if time.monotonic() > deadline:
                    raise UserError(f"{self.title} has been in deletion for too long; look at it.")
                self.cluster.sleep(1.0)
            elif status.finished:
                self.say(
                    f"replacing {self.title} of an earlier try, which {_state(status)}: "
                    f"{status.detail}"
                )
                self.cluster.delete(*self.kind, self.request.name)
                self.cluster.sleep(0.5)
            else:
                self._check_same(job)
                self.attached = True
                with contextlib.suppress(ApiError):  # it belongs to this try's run from now on
                    self.cluster.annotate(*self.kind, self.request.name, {}, run_labels())
                self.progress.log(f"attached to {self.title}, which {_state(status)}")
                return

    def _create(self, body: Mapping[str, Any]) -> None:
        """Create the job, unless the step is cancelled, which must find it made or not begun."""
        with self.creating:
            if self.cancelled:
                raise UserError(f"{self.title} is not created: the step is being cancelled.")
            self.cluster.create(*self.kind, body)
            self.attached = True

    def _check_same(self, job: Mapping[str, Any]) -> None:
        recorded = (job["metadata"].get("annotations") or {}).get(REQUEST_ANNOTATION)
        if recorded is None:
            raise UserError(
                f"{self.title} exists and was not made by this launcher. Delete it, or change "
                "the run's settings so that it gets another name."
            )
        differences = [
            text
            for text in self.request.differences(json.loads(recorded))
            if text.split(" ")[0] not in _HARMLESS
        ]
        if differences:
            raise UserError(
                f"{self.title} is training this very run with other settings "
                f"({'; '.join(differences)}). Wait for it, or delete it to go on from its last "
                f"checkpoint with the new ones: kubectl -n {self.cluster.namespace} delete "
                f"{self.backend.plural}.{self.backend.group} {self.request.name}"
            )

    def cancel(self) -> None:
        """Delete the job. Runs beside `attach` and `follow`, wherever they are."""
        self.cancelled = True
        cluster = copy.copy(self.cluster)
        cluster.patience_s = min(cluster.patience_s, _DELETION_S)
        cluster.timeout_s = min(cluster.timeout_s, _ANSWER_S)
        self.creating.acquire(timeout=_CREATION_S)  # what is being created must be there to delete
        try:
            if not self.attached:
                job = cluster.get(*self.kind, self.request.name)
                if job is None:
                    self.progress.log(f"cancelled before {self.title} was created")
                    return
                self._check_same(job)
            cluster.delete(*self.kind, self.request.name)
        except UserError as error:
            self.progress.log(f"cancelled, but {self.title} was not deleted: {error}")
            return
        self.progress.log(f"cancelled: deleted {self.title}")

    # -- following ---------------------------------------------------------------------------

    def follow(self) -> None:
        """Look at the job until it ends."""
        uid = ""
        while True:
            job = self.cluster.get(*self.kind, self.request.name)
            if job is None or job["metadata"].get("deletionTimestamp"):
                self.follower.finish(timeout_s=1)
                raise UserError(f"{self.title} was deleted by someone else while it trained.")
            uid = uid or str(job["metadata"].get("uid", ""))
            if job["metadata"].get("uid", "") != uid:
                raise UserError(f"{self.title} was replaced by someone else while it trained.")
            status = self.backend.status(job)
            selector = self.backend.pod_selector(self.request.name)
            pods = self.cluster.find("pods", labelSelector=selector)
            pods.sort(key=self.backend.node_index)
            self._tell(status)
            self.follower.attend(pods)
            self._collect_endings(pods)
            if status.phase == "succeeded":
                self._succeeded()
                return
            if status.phase == "failed":
                self._failed(status)
            self._explain_waiting(status, pods, job)
            self._annotate()
            self.cluster.wait_for_change(*self.kind, job, self.timing.poll_s)

    def say(self, sentence: str) -> None:
        """A line of the log, unless it was the last one of its sort already."""
        if sentence != self.said:
            self.said = sentence
            self.progress.log(sentence)

    def _tell(self, status: JobStatus) -> None:
        if status.phase == self.phase:
            return
        self.phase = status.phase
        detail = f": {status.detail}" if status.detail else ""
        if status.phase == "suspended":
            detail = (
                f": it waits for quota in the Kueue queue '{self.request.queue}'"
                if self.request.queue
                else f"{detail}. It trains once somebody sets suspend to false"
            )
        self.progress.log(f"{self.title} {_state(status)}{detail}")

    def _succeeded(self) -> None:
        self.follower.finish()
        self._annotate(at_once=True)
        if self.request.delete_on_success:
            self.cluster.delete(*self.kind, self.request.name)
            self.progress.log(f"deleted {self.title} after its success")

    def _failed(self, status: JobStatus) -> None:
        self.follower.finish(timeout_s=5)
        sentence = f"{self.title} failed: {explain.failure(status.detail, self.request)}."
        cause = explain.root_cause([ending for ending, _ in self.endings.values()])
        if cause is not None:
            sentence += f" {cause.sentence}."
            lines = self.endings[cause.key][1]
        else:
            lines = explain.last_lines("\n".join(self.follower.tail), _LINES)
        if lines:
            sentence += f" Last lines:\n{_indent(lines)}"
        raise UserError(sentence)

    def _collect_endings(self, pods: list[dict[str, Any]]) -> None:
        """Tell of containers that ended badly, once each, while their logs still exist."""
        for pod in pods:
            for ending in explain.bad_endings(pod, self.request):
                if ending.key in self.endings:
                    continue
                text = self.cluster.pod_log(
                    ending.pod, self.backend.container, lines=_READ, previous=not ending.current
                )
                lines = explain.last_lines(text, _LINES)
                told = explain.with_hint(ending, text)
                self.endings[ending.key] = (told, lines)
                shown = f". Last lines:\n{_indent(lines)}" if lines else ""
                self.progress.log(f"{told.sentence}{shown}")

    def _explain_waiting(
        self, status: JobStatus, pods: list[dict[str, Any]], job: Mapping[str, Any]
    ) -> None:
        """Say why ranks are not running, and give up when that lasts too long."""
        reasons = [reason for pod in pods if (reason := explain.waiting_reason(pod))]
        starting = [pod for pod in pods if (pod.get("status") or {}).get("phase") == "Pending"]
        if status.phase == "suspended" or (len(pods) >= self.request.nodes and not starting):
            self.waiting_since = None
            return
        now = time.monotonic()
        if self.waiting_since is None:
            self.waiting_since = now
        waited = now - self.waiting_since
        if not reasons and len(pods) < self.request.nodes and waited >= self.timing.no_pods_s:
            reasons = [("NoPods", self._why_no_pods(job, len(pods)))]
        if not reasons:
            return
        cause, sentence = reasons[0]
        self.say(sentence)
        limit = float(self.request.start_timeout_seconds) or float("inf")
        if cause in explain.HOPELESS:
            limit = min(limit, self.timing.hopeless_s)
        if cause == "ImagePull":
            limit = min(limit, self.timing.image_pull_s)
        if waited >= limit:
            self.cluster.delete(*self.kind, self.request.name)
            raise UserError(
                f"{self.title} did not start within {waited:.0f} s and was deleted. {sentence}"
            )

    def _why_no_pods(self, job: Mapping[str, Any], have: int) -> str:
        """Events of the job, then the quotas, then the controller."""
        name = job["metadata"]["name"]
        missing = f"{have} of {self.request.nodes} pods of {self.title} exist: "
        with contextlib.suppress(ApiError):
            quota = explain.quota_reason(self.cluster.find("resourcequotas"), self.request)
            if quota:
                return missing + quota
        with contextlib.suppress(ApiError):
            selector = f"involvedObject.kind={self.backend.kind},involvedObject.name={name}"
            event = explain.event_reason(self.cluster.find("events", fieldSelector=selector))
            if event:
                return missing + event
        if not job.get("status"):
            return (
                f"{missing}no controller has taken notice of the job. Check that the operator "
                f"for {self.backend.kind}s runs"
            )
        return f"{missing}the controller has created no more and gives no reason"

    def _annotate(self, *, at_once: bool = False) -> None:
        """Progress as an annotation of the job, for `cosmos-pipelines status` and others."""
        progress = self.follower.progress
        now = time.monotonic()
        if progress is None or (not at_once and now - self.annotated_at < self.timing.annotate_s):
            return
        value = progress.model_dump_json(exclude_none=True)
        if value == self.annotated:
            return
        self.annotated, self.annotated_at = value, now
        with contextlib.suppress(ApiError):  # progress is not worth failing a training run for
            self.cluster.annotate(*self.kind, self.request.name, {PROGRESS_ANNOTATION: value})


def _state(status: JobStatus) -> str:
    return {
        "created": "is waiting to start",
        "running": "is running",
        "restarting": "is restarting",
        "suspended": "is suspended",
        "succeeded": "has succeeded",
        "failed": "has failed",
    }[status.phase]


def _indent(lines: str) -> str:
    return "\n".join("  | " + line for line in lines.rstrip().splitlines()[-_LINES:])
