"""Why a job does not start or does not go on, in words.

Kubernetes spreads the reasons over pod conditions, container states, events and quotas. These
functions read the raw objects (dicts) and return sentences that name the cause and the remedy, so
that nobody has to run ``kubectl describe``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from components.lib.contract import Frozen
from components.training.launch.interface import LaunchRequest

# Causes that only a person can mend; after a short grace (a Secret may be created just now) the
# step fails instead of waiting for `start_timeout_seconds`.
HOPELESS = frozenset(
    {
        "InvalidImageName",
        "ErrImageNeverPull",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
    }
)
_EPILOGUE = re.compile(
    r"torch/distributed/elastic/\S+ failed \(exitcode|Sending process \d+ closing"
)
_SIGNALS = {
    134: "aborted (SIGABRT)",
    137: "killed (SIGKILL)",
    139: "crashed (SIGSEGV)",
    143: "was terminated (SIGTERM)",
}


class Ending(Frozen):
    """A container that ended badly, identified so that it is told once."""

    pod: str
    uid: str
    restarts: int
    current: bool
    finished: str = ""
    by_cluster: bool = False
    sentence: str

    @property
    def key(self) -> tuple[str, int]:
        """Equal for the same ending, seen as current state or as the one before a restart."""
        return self.uid, self.restarts


def waiting_reason(pod: Mapping[str, Any]) -> tuple[str, str] | None:
    """(cause, sentence) why a pod has not started; None when it has."""
    status = pod.get("status") or {}
    name = pod["metadata"]["name"]
    if status.get("phase") not in (None, "Pending"):
        return None
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            message = condition.get("message", "")
            return "Unschedulable", f"{name} cannot be scheduled: {_scheduling(message)}"
    for state in _states(status):
        waiting = (state.get("state") or {}).get("waiting") or {}
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if reason in ("ErrImagePull", "ImagePullBackOff"):
            sentence = (
                f"{name}: the image {state.get('image')} cannot be pulled: {message} Check its "
                "name, the registry and image_pull_secrets."
            )
            return "ImagePull", sentence
        if reason == "CreateContainerConfigError":
            sentence = (
                f"{name}: {message}. Create what is missing in the namespace (manifests/base has "
                "templates of the Secrets)."
            )
            return reason, sentence
        if reason and reason not in ("ContainerCreating", "PodInitializing"):
            return reason, f"{name}: {reason}: {message}"
    return None


def _scheduling(message: str) -> str:
    hints = []
    if match := re.search(r"Insufficient (\S*gpu\S*?)[,.]?(?:\s|$)", message):
        hints.append(
            f"no node has as many free {match[1].rstrip('.,')} as a pod asks for; lower "
            "gpus_per_node or add nodes"
        )
    elif match := re.search(r"Insufficient (\w[\w./-]*\w)", message):
        hints.append(f"no node has enough free {match[1]}; lower {match[1]} or add nodes")
    if "taint" in message:
        hints.append("nodes are tainted; give the job a toleration")
    if "affinity" in message or "selector" in message:
        hints.append("no node has the labels of node_selector")
    return f"{message}" + (f" ({'; '.join(hints)})" if hints else "")


def bad_endings(pod: Mapping[str, Any], request: LaunchRequest) -> list[Ending]:
    """Containers of a pod that ended with an error, now or before their last restart."""
    status, metadata = pod.get("status") or {}, pod["metadata"]
    name, uid = metadata["name"], str(metadata.get("uid", ""))
    endings = []
    for state in _states(status):
        restarts = int(state.get("restartCount", 0))
        for current, key in ((True, "state"), (False, "lastState")):
            ended = (state.get(key) or {}).get("terminated")
            if ended and ended.get("exitCode", 0) != 0:
                endings.append(
                    Ending(
                        pod=name,
                        uid=uid,
                        restarts=restarts + 1 if current else restarts,
                        current=current,
                        finished=str(ended.get("finishedAt") or ""),
                        by_cluster=ended.get("reason") == "OOMKilled",
                        sentence=f"{name} {_ended(ended, request)}",
                    )
                )
    if not endings and status.get("phase") == "Failed" and status.get("reason"):
        endings.append(
            Ending(
                pod=name,
                uid=uid,
                restarts=0,
                current=True,
                by_cluster=True,
                sentence=f"{name} was removed by the cluster: {status['reason']}: "
                f"{status.get('message', '')}",
            )
        )
    return endings


def root_cause(endings: Sequence[Ending]) -> Ending | None:
    """The ending that most likely brought the others down.

    When one rank dies the rest lose their peer and die of that within seconds. So, among the
    endings of the last minute, what the cluster did (out of memory, eviction) comes first, then
    the earliest.
    """
    if not endings:
        return None
    newest = max(_seconds(ending.finished) for ending in endings)
    recent = [ending for ending in endings if newest - _seconds(ending.finished) <= 60]
    return min(recent, key=lambda ending: (not ending.by_cluster, ending.finished))


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp() if stamp else 0.0


def _ended(ended: Mapping[str, Any], request: LaunchRequest) -> str:
    code = int(ended.get("exitCode", 0))
    if ended.get("reason") == "OOMKilled":
        return (
            f"ran out of memory (OOMKilled): its limit is {request.memory}, of which /dev/shm may "
            f"take {request.shared_memory}. Raise memory, or lower the data loader's workers"
        )
    text = f"ended with exit code {code}"
    if code in _SIGNALS:
        text += f": it {_SIGNALS[code]}"
    if ended.get("reason") not in (None, "Error", "Completed"):
        text += f" ({ended['reason']}: {ended.get('message', '')})"
    return text


def with_hint(ending: Ending, text: str) -> Ending:
    """The ending, with what torchrun's report of a killed rank in its log most likely means.

    The kernel kills a rank that takes too much memory; torchrun survives and exits with 1, so the
    container does not always count as OOMKilled.
    """
    if ending.by_cluster or not re.search(r"exitcode\s*:\s*-9\b", text):
        return ending
    hint = " because a rank was killed, most likely for its memory: raise memory"
    return ending.model_copy(update={"sentence": ending.sentence + hint})


def last_lines(text: str, count: int) -> str:
    """The last lines that say something: without what torchrun prints after a rank has failed.

    That is some forty lines about torchrun itself, which would bury the reason.
    """
    lines = text.rstrip().splitlines()
    for index, line in enumerate(lines):
        if _EPILOGUE.search(line) and index:
            lines = lines[:index]
            break
    return "\n".join(lines[-count:])


def event_reason(events: Iterable[Mapping[str, Any]]) -> str | None:
    """The latest warning among the events of a job."""
    warnings = [event for event in events if event.get("type") == "Warning"]
    warnings.sort(key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""))
    if not warnings:
        return None
    return f"{warnings[-1].get('reason', '')}: {warnings[-1].get('message', '')}"


def quota_reason(quotas: Iterable[Mapping[str, Any]], request: LaunchRequest) -> str | None:
    """Which resource quota leaves no room for another pod of the request."""
    from kubernetes.utils import parse_quantity

    asked = {
        "requests.cpu": request.cpu,
        "cpu": request.cpu,
        "requests.memory": request.memory,
        "memory": request.memory,
        "limits.memory": request.memory,
        "pods": "1",
    }
    if request.gpus_per_node:
        asked[f"requests.{request.gpu_resource}"] = str(request.gpus_per_node)
    for quota in quotas:
        status = quota.get("status") or {}
        hard, used = status.get("hard") or {}, status.get("used") or {}
        for resource, wanted in asked.items():
            if resource not in hard:
                continue
            taken = used.get(resource, "0")
            if parse_quantity(taken) + parse_quantity(wanted) > parse_quantity(hard[resource]):
                return (
                    f"the resource quota '{quota['metadata']['name']}' has {taken} of "
                    f"{hard[resource]} {resource} in use and a pod asks for {wanted}. Wait for "
                    "other jobs, ask for less, or raise the quota"
                )
    return None


def failure(detail: str, request: LaunchRequest) -> str:
    """The controller's own reason for a failed job, with what it means."""
    if "DeadlineExceeded" in detail or "active longer than" in detail:
        return (
            f"it ran longer than its active deadline of {request.active_deadline_seconds} s. "
            "Raise active_deadline_seconds; the next try goes on from the last checkpoint"
        )
    if "backoff" in detail.lower():
        return f"it failed again after {request.backoff_limit} restarts ({detail})"
    return detail or "the controller gives no reason"


def _states(status: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
