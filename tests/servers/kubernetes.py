"""A Kubernetes API server in memory, for the calls that a launcher and the commands make.

It reproduces:

- create, get, list, patch and delete of the installed custom resources, with the status, reason
  and message of each refusal: 400, 401, 403, 404 (a missing object in a Status, a resource that
  is not installed in plain text), 409 and 422. The recordings of real servers in
  `tests/data/recorded` (made by the calls of `tests.training.launch.exchanges`) are what it is
  held to in `tests.servers.test_kubernetes`;
- objects that a CRD's schema does not know are refused (`tests.servers.crds`);
- watches: chunked JSON lines, a version that is too old told by an ERROR event within a stream
  that itself has status 200 (recorded too). A watch ends after its first event, as any server may
  end one;
- logs of pods: tails, the previous container, timestamps, ``sinceTime`` with its resolution of a
  second, and a followed stream that lasts as long as the pod runs.

Two bearer tokens are known: "good" has the rights of the steps' account, which may not list
jobs, and "admin" may. Any other one is a 401.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.servers.faults import Refusal, meet
from tests.servers.kubernetes_objects import NAMESPACE, FakeKubernetes
from tests.servers.loopback import Json, QuietHandler, serving

__all__ = ["NAMESPACE", "FakeKubernetes", "api_client", "fake_kubernetes"]

REASONS = {
    400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound",
    409: "AlreadyExists", 422: "Invalid",
}  # fmt: skip
Query = dict[str, str]


@contextmanager
def fake_kubernetes() -> Iterator[FakeKubernetes]:
    """A server that runs; ``url`` says where."""
    fake = FakeKubernetes()
    with serving(type("Handler", (KubernetesHandler,), {"fake": fake})) as fake.url:
        yield fake
        fake.closing.set()


def api_client(url: str, token: str = "good") -> Any:
    """The official client (a `kubernetes.client.ApiClient`) with this token."""
    from kubernetes import client

    settings = client.Configuration()
    settings.host = url
    settings.retries = False
    settings.api_key = {"authorization": token}
    settings.api_key_prefix = {"authorization": "Bearer"}
    return client.ApiClient(settings)


def failure(code: int, reason: str, message: str) -> Json:
    """What a server says where something failed."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


class KubernetesHandler(QuietHandler):
    """Answers from the state of its class's ``fake``."""

    fake: FakeKubernetes

    def respond(self) -> None:
        """Any request."""
        data = self.body()
        self.fake.requests.append((self.command, self.path))
        try:
            if fault := self.fake.faults.take(self.command, self.path):
                meet(fault, self, self.fake.closing)
            self.route(json.loads(data) if data else {})
        except Refusal as refusal:
            self.refuse(refusal)
        except ConnectionAbortedError:
            self.close_connection = True

    do_GET = do_POST = do_PATCH = do_DELETE = respond

    def route(self, body: Json) -> None:
        fake, split = self.fake, urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(split.query).items()}
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("good", "admin"):
            raise Refusal(401, "Unauthorized")
        parts = split.path.strip("/").split("/")
        match parts[parts.index(NAMESPACE) + 1 :] if NAMESPACE in parts else []:
            case []:
                raise Refusal(404, None)
            case [plural, *rest] if parts[0] == "api":
                self.core(plural, rest, query)
            case [plural] if query.get("watch"):
                self.watch(plural, query)
            case [plural] if self.command == "GET":
                self.list_jobs(plural, query, token)
            case [plural] if self.command == "POST":
                self.send_json(201, fake.create(plural, body))
            case [plural, name] if self.command == "PATCH":
                self.send_json(200, fake.patch(plural, name, body))
            case [plural, name] if self.command == "DELETE":
                self.send_json(200, fake.delete(plural, name))
            case [plural, name, *_]:
                self.send_json(200, fake.get(plural, name))

    def list_jobs(self, plural: str, query: Query, token: str) -> None:
        resource, kind = self.fake.resource(plural), self.fake.kinds[plural]
        if token != "admin":
            user = f"system:serviceaccount:{NAMESPACE}:{NAMESPACE}-pipeline"
            raise Refusal(
                403,
                f'{resource} is forbidden: User "{user}" cannot list resource "{plural}" in API '
                f'group "{kind.group}" in the namespace "{NAMESPACE}"',
            )
        jobs = self.fake.matching(plural, query.get("labelSelector", ""))
        self.send_list(kind.name, kind.api_version, jobs)

    def core(self, plural: str, rest: list[str], query: Query) -> None:
        """Pods, their logs, quotas and events."""
        fake = self.fake
        match plural, rest:
            case "pods", [name, "log"]:
                self.pod_log(name, query)
            case "pods", [] if "fieldSelector" in query:
                name = query["fieldSelector"].removeprefix("metadata.name=")
                self.send_list("Pod", "v1", [fake.pods[name]] if name in fake.pods else [])
            case "pods", []:
                self.send_list("Pod", "v1", fake.pods_with(query.get("labelSelector", "")))
            case "resourcequotas", []:
                self.send_list("ResourceQuota", "v1", fake.quotas)
            case "events", []:
                self.send_list("Event", "v1", fake.events)
            case _:
                raise Refusal(404, None)

    def watch(self, plural: str, query: Query) -> None:
        """One event, when the object changes in time."""
        fake, known = self.fake, query.get("resourceVersion", "")
        self.begin_stream()
        if fake.watch_errors or known == "1":
            fake.watch_errors = max(fake.watch_errors - 1, 0)
            message = f"too old resource version: {known}"
            self.event("ERROR", failure(410, "Expired", message))
        else:
            end = time.monotonic() + float(query["timeoutSeconds"])
            name = query["fieldSelector"].removeprefix("metadata.name=")
            seen: Json | None = None
            with fake.changed:
                while time.monotonic() < end:
                    job = fake.jobs.get((plural, name))
                    if job and job["metadata"]["resourceVersion"] != known:
                        self.event("MODIFIED" if known else "ADDED", job)
                        break
                    if seen and not job:
                        self.event("DELETED", seen)
                        break
                    seen = job
                    fake.changed.wait(0.05)
        self.chunk(b"")

    def event(self, kind: str, record: Json) -> None:
        self.chunk(json.dumps({"type": kind, "object": record}).encode() + b"\n")

    def pod_log(self, name: str, query: Query) -> None:
        fake = self.fake
        if name not in fake.pods:
            raise Refusal(404, f'pods "{name}" not found')
        if fake.pods[name]["status"]["phase"] == "Pending":
            raise Refusal(400, f'container in pod "{name}" is waiting to start')
        key = f"{name} previous" if query.get("previous") else name
        self.begin_stream()
        sent = 0
        if "tailLines" in query:
            sent = max(0, len(fake.logs.get(key, [])) - int(query["tailLines"]))
        while True:
            lines = fake.logs.get(key, [])
            for line in lines[sent:]:
                sent += 1
                if query.get("sinceTime", "") <= line[: len("2026-01-01T00:00:00")] + "Z":
                    whole = line.removesuffix("<cut>")
                    text = whole if query.get("timestamps") else whole.partition(" ")[2]
                    self.chunk(text.encode() + b"\n")
                if line.endswith("<cut>"):
                    lines[sent - 1] = line.removesuffix("<cut>")
                    raise ConnectionAbortedError
            running = name in fake.pods and fake.pods[name]["status"]["phase"] == "Running"
            if not query.get("follow") or not running:
                break
            with fake.changed:
                fake.changed.wait(0.05)
        self.chunk(b"")

    def refuse(self, refusal: Refusal) -> None:
        if refusal.message is None:  # no such resource: not even a Status
            self.send(404, b"404 page not found\n", "text/plain")
            return
        status = failure(refusal.status, REASONS.get(refusal.status, ""), refusal.message)
        self.send_json(refusal.status, status, refusal.headers)

    def send_list(self, kind: str, version: str, items: list[Json]) -> None:
        metadata = {"resourceVersion": str(self.fake.version)}
        record = {"kind": f"{kind}List", "apiVersion": version, "metadata": metadata}
        self.send_json(200, {**record, "items": items})

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()
