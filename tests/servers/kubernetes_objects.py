"""What a fake Kubernetes API server knows: jobs, pods, logs, and how tests make them change.

The tests play operator, scheduler and kubelet here (`FakeKubernetes.condition`, `pod`, `log`);
`tests.servers.kubernetes` answers HTTP from it.
"""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Callable, Mapping

from tests.servers.crds import load_kinds
from tests.servers.faults import Faults, Refusal, Trouble
from tests.servers.loopback import Json

NAMESPACE = "team-a"
NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")


def selected(record: Json, selector: str) -> bool:
    """Whether an object has all labels of a selector, as ``key=value,key=value``."""
    labels: dict[str, str] = record["metadata"].get("labels", {})
    return all(labels.get(key) == value for key, value in _terms(selector))


def _terms(selector: str) -> list[tuple[str, str]]:
    parts = [term.partition("=") for term in selector.split(",") if term]
    return [(key, value) for key, _, value in parts]


class FakeKubernetes:
    """The state of one namespace.

    ``jobs`` are the custom objects by (plural, name), ``installed`` the plurals whose CRD there
    is, ``requests`` every (method, path) that was asked, ``watch_errors`` how many of the next
    watches are told that their version is too old.
    """

    def __init__(self) -> None:
        self.kinds = load_kinds()
        self.installed = set(self.kinds)
        self.url = ""
        self.jobs: dict[tuple[str, str], Json] = {}
        self.pods: dict[str, Json] = {}
        self.logs: dict[str, list[str]] = {}
        self.events: list[Json] = []
        self.quotas: list[Json] = []
        self.faults = Faults()
        self.requests: list[tuple[str, str]] = []
        self.version = 100
        self.changed = threading.Condition()
        self.reactions: list[Callable[[str], object]] = []
        self.closing = threading.Event()
        self.watch_errors = 0

    # -- played by the tests -----------------------------------------------------------------

    def fail(
        self,
        method: str,
        path: str,
        trouble: Trouble,
        times: int = 1,
        *,
        message: str = "passing trouble",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """The next ``times`` requests whose path matches get a status or another `Trouble`."""
        self.faults.order(method, path, trouble, times, message=message, headers=headers)

    def on_create(self, reaction: Callable[[str], object]) -> None:
        """Call ``reaction(name)`` once a job is created, in a thread of its own."""
        self.reactions.append(reaction)

    def condition(
        self, name: str, kind: str, message: str = "", reason: str = "Because", **status: object
    ) -> None:
        """The operator sets a condition of a job, and other fields of its status."""
        with self.changed:
            job = self._job(name)
            conditions = job.setdefault("status", {}).setdefault("conditions", [])
            for old in conditions:
                old["status"] = "False"
            conditions.append(
                {"type": kind, "status": "True", "message": message, "reason": reason}
            )
            job["status"].update(status)
            self._touch(job)

    def pod(
        self, name: str, labels: Mapping[str, str], phase: str = "Running", **status: object
    ) -> None:
        """There is a pod, in this phase from now on."""
        with self.changed:
            self.pods[name] = {
                "metadata": {"name": name, "labels": dict(labels), "uid": f"uid-{name}"},
                "status": {"phase": phase, **status},
            }
            self.changed.notify_all()

    def replica(
        self, kind: str, job: str, index: int = 0, phase: str = "Running", **status: object
    ) -> None:
        """A pod of a PyTorchJob."""
        labels = {
            "training.kubeflow.org/job-name": job,
            "training.kubeflow.org/replica-type": kind,
            "training.kubeflow.org/replica-index": str(index),
        }
        self.pod(f"{job}-{kind}-{index}", labels, phase, **status)

    def master(self, job: str, phase: str = "Running", **status: object) -> None:
        """The pod of rank 0 of a PyTorchJob."""
        self.replica("master", job, 0, phase, **status)

    def worker(self, job: str, index: int = 0, phase: str = "Running", **status: object) -> None:
        """The pod of another node of a PyTorchJob."""
        self.replica("worker", job, index, phase, **status)

    def log(self, pod: str, *lines: str) -> None:
        """A container writes lines; after one that ends with ``<cut>`` its stream breaks, once."""
        with self.changed:
            kept = self.logs.setdefault(pod, [])
            for line in lines:
                stamp = f"2026-01-01T00:{len(kept) // 60:02d}:{len(kept) % 60:02d}.5Z"
                kept.append(f"{stamp} {line}")
            self.changed.notify_all()

    def job(self, name: str) -> Json:
        """A copy of a job."""
        with self.changed:
            return copy.deepcopy(self._job(name))

    def count(self, method: str, path: str) -> int:
        """How many requests of this kind there were."""
        return sum(1 for m, p in self.requests if m == method and re.search(path, p))

    def _job(self, name: str) -> Json:
        return next(job for (_, known), job in self.jobs.items() if known == name)

    def _touch(self, job: Json) -> None:
        self.version += 1
        job["metadata"]["resourceVersion"] = str(self.version)
        self.changed.notify_all()

    # -- asked by clients --------------------------------------------------------------------

    def resource(self, plural: str) -> str:
        """A resource as messages name it. Raises `Refusal` where it is not installed."""
        if plural not in self.installed:
            raise Refusal(404, None)
        return f"{plural}.{self.kinds[plural].group}"

    def create(self, plural: str, body: Json) -> Json:
        """Create an object, as strict about it as ``fieldValidation=Strict``."""
        resource, kind = self.resource(plural), self.kinds[plural]
        if body.get("apiVersion") != kind.api_version:
            raise Refusal(
                400,
                f"the API version in the data ({body.get('apiVersion')}) does not match the "
                f"expected API version ({kind.api_version})",
            )
        name = body["metadata"]["name"]
        problems = kind.problems(body)
        if not NAME.fullmatch(name):
            problems.append(f'metadata.name: Invalid value: "{name}"')
        for value in body["metadata"].get("labels", {}).values():
            if not LABEL.fullmatch(value) or len(value) > 63:
                problems.append(f'metadata.labels: Invalid value: "{value}"')
        if problems:
            about = f'{kind.name}.{kind.group} "{name}"'
            raise Refusal(422, f"{about} is invalid: {'; '.join(problems)}")
        with self.changed:
            if (plural, name) in self.jobs:
                raise Refusal(409, f'{resource} "{name}" already exists')
            self.version += 1
            body["metadata"].update(uid=f"uid-{self.version}", namespace=NAMESPACE)
            self.jobs[plural, name] = body
            self._touch(body)
        for reaction in self.reactions:
            threading.Thread(target=reaction, args=(name,), daemon=True).start()
        return body

    def get(self, plural: str, name: str) -> Json:
        """An object."""
        resource = self.resource(plural)
        if (plural, name) not in self.jobs:
            raise Refusal(404, f'{resource} "{name}" not found')
        return self.jobs[plural, name]

    def matching(self, plural: str, selector: str) -> list[Json]:
        """Objects with all these labels."""
        self.resource(plural)
        jobs = [job for (kind, _), job in list(self.jobs.items()) if kind == plural]
        return [job for job in jobs if selected(job, selector)]

    def delete(self, plural: str, name: str) -> Json:
        """Delete an object and its pods."""
        self.get(plural, name)
        with self.changed:
            self.jobs.pop((plural, name))
            self.pods.clear()
            self.changed.notify_all()
        return {"kind": "Status", "apiVersion": "v1", "status": "Success"}

    def patch(self, plural: str, name: str, body: Json) -> Json:
        """Merge annotations and labels into an object."""
        job = self.get(plural, name)
        with self.changed:
            for part in ("annotations", "labels"):
                job["metadata"].setdefault(part, {}).update(body["metadata"].get(part) or {})
            self._touch(job)
        return job

    def pods_with(self, selector: str) -> list[Json]:
        """Pods with all these labels."""
        return [pod for pod in list(self.pods.values()) if selected(pod, selector)]
