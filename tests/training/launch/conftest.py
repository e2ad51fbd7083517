"""A Kubernetes API server in memory: CRD schemas, watches, log streams and faults on request.

It answers as Kubernetes does for the few calls that a launcher makes. Creates are checked against
the openAPIV3Schema of the CRDs with unknown fields refused (fieldValidation=Strict).
"""

import gzip
import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jsonschema
import pytest

from components.training.launch.interface import LaunchRequest
from components.training.launch.job import Timing
from components.training.launch.kube import Cluster

REASONS = {
    400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound",
    409: "AlreadyExists", 422: "Invalid",
}  # fmt: skip
LABEL = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
DATA = Path(__file__).parents[2] / "data"
NAMESPACE = "team-a"


def strict_schema(schema: Any) -> Any:
    """An OpenAPI v3 schema of a CRD as a JSON schema that refuses unknown fields."""
    result = {
        key: value
        for key, value in schema.items()
        if key in ("type", "enum", "required", "minimum", "maximum", "minLength", "maxLength",
                   "pattern", "minItems", "maxItems")
    }  # fmt: skip
    if schema.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": "^[-+0-9.a-zA-Z]+$"}]}
    if "properties" in schema:
        result["properties"] = {k: strict_schema(v) for k, v in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = strict_schema(schema["additionalProperties"])
    if "items" in schema:
        result["items"] = strict_schema(schema["items"])
    return result


def load_crds() -> Any:
    crds = json.loads(gzip.decompress((DATA / "crds.json.gz").read_bytes()))
    for crd in crds.values():
        schema = strict_schema(crd["schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        crd["validator"] = jsonschema.Draft202012Validator(schema)
    return {crd["plural"]: crd for crd in crds.values()}


class Refusal(Exception):
    def __init__(self, status: Any, message: Any, headers: Any = ()) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers)


class FakeKubernetes:
    """State, and what happens to it; the tests play operator, scheduler and kubelet."""

    def __init__(self) -> None:
        self.crds = load_crds()
        self.installed = set(self.crds)
        self.url = ""
        self.jobs: dict[Any, Any] = {}
        self.pods: dict[str, Any] = {}
        self.logs: dict[str, list[str]] = {}
        self.events: list[Any] = []
        self.quotas: list[Any] = []
        self.faults: list[Any] = []
        self.requests: list[tuple[str, str]] = []
        self.version = 100
        self.changed = threading.Condition()
        self.reactions: list[Any] = []
        self.closing = threading.Event()
        self.watch_errors = 0

    # -- played by the tests -----------------------------------------------------------------

    def fail(
        self,
        method: Any,
        pattern: Any,
        status: Any,
        times: Any = 1,
        message: Any = "passing trouble",
        headers: Any = (),
    ) -> None:
        """The next ``times`` matching requests get ``status``, a "drop", "hang" or "login page".

        One that is "slow" is carried out after a second.
        """
        self.faults.append([method, re.compile(pattern), status, times, message, headers])

    def on_create(self, reaction: Any) -> None:
        """Call ``reaction(name)`` once a job is created, in a thread of its own."""
        self.reactions.append(reaction)

    def condition(
        self, name: Any, kind: Any, message: Any = "", reason: Any = "Because", **status: Any
    ) -> None:
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
        self, name: Any, labels: Any, phase: Any = "Running", uid: Any = None, **status: Any
    ) -> None:
        with self.changed:
            self.pods[name] = {
                "metadata": {"name": name, "labels": labels, "uid": uid or f"uid-{name}"},
                "status": {"phase": phase, **status},
            }
            self.changed.notify_all()

    def master(self, job: Any, phase: Any = "Running", **status: Any) -> None:
        labels = {
            "training.kubeflow.org/job-name": job,
            "training.kubeflow.org/replica-type": "master",
            "training.kubeflow.org/replica-index": "0",
        }
        self.pod(f"{job}-master-0", labels, phase, **status)

    def worker(self, job: Any, index: Any = 0, phase: Any = "Running", **status: Any) -> None:
        labels = {
            "training.kubeflow.org/job-name": job,
            "training.kubeflow.org/replica-type": "worker",
            "training.kubeflow.org/replica-index": str(index),
        }
        self.pod(f"{job}-worker-{index}", labels, phase, **status)

    def log(self, pod: Any, *lines: Any) -> None:
        with self.changed:
            kept = self.logs.setdefault(pod, [])
            for line in lines:
                stamp = f"2026-01-01T00:{len(kept) // 60:02d}:{len(kept) % 60:02d}.5Z"
                kept.append(f"{stamp} {line}")
            self.changed.notify_all()

    def job(self, name: Any) -> Any:
        with self.changed:
            return json.loads(json.dumps(self._job(name)))

    def count(self, method: Any, pattern: Any) -> Any:
        return sum(1 for m, p in self.requests if m == method and re.search(pattern, p))

    def _job(self, name: Any) -> Any:
        return next(job for (_, found), job in self.jobs.items() if found == name)

    def _touch(self, job: Any) -> None:
        self.version += 1
        job["metadata"]["resourceVersion"] = str(self.version)
        self.changed.notify_all()

    # -- the API -----------------------------------------------------------------------------

    def collection(self, plural: Any) -> None:
        if plural not in self.installed:
            raise Refusal(404, None)

    def create(self, plural: Any, body: Any) -> Any:
        self.collection(plural)
        crd = self.crds[plural]
        if body.get("apiVersion") != f"{crd['group']}/{crd['version']}":
            raise Refusal(
                400,
                f"the API version in the data ({body.get('apiVersion')}) does not match the "
                f"expected API version ({crd['group']}/{crd['version']})",
            )
        problems = [error.message for error in crd["validator"].iter_errors(body)]
        if problems:
            raise Refusal(422, f"{plural} is invalid: {'; '.join(problems)}")
        name = body["metadata"]["name"]
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name):
            raise Refusal(422, f"metadata.name: Invalid value: {name}")
        for value in body["metadata"].get("labels", {}).values():
            if not LABEL.fullmatch(value) or len(value) > 63:
                raise Refusal(422, f"metadata.labels: Invalid value: {value}")
        with self.changed:
            if (plural, name) in self.jobs:
                raise Refusal(409, f'{plural}.{crd["group"]} "{name}" already exists')
            self.version += 1
            body["metadata"].update(uid=f"uid-{self.version}", namespace=NAMESPACE)
            self.jobs[plural, name] = body
            self._touch(body)
        for reaction in self.reactions:
            threading.Thread(target=reaction, args=(name,), daemon=True).start()
        return body

    def get(self, plural: Any, name: Any) -> Any:
        self.collection(plural)
        if (plural, name) not in self.jobs:
            raise Refusal(404, f'{plural}.{self.crds[plural]["group"]} "{name}" not found')
        return self.jobs[plural, name]

    def matching(self, plural: str, selector: str) -> Any:
        self.collection(plural)
        key, value = selector.split("=")
        return [
            job
            for (kind, _), job in self.jobs.items()
            if kind == plural and job["metadata"].get("labels", {}).get(key) == value
        ]

    def delete(self, plural: Any, name: Any) -> Any:
        self.get(plural, name)
        with self.changed:
            self.jobs.pop((plural, name))
            self.pods.clear()
            self.changed.notify_all()
        return {"kind": "Status", "status": "Success"}

    def patch(self, plural: Any, name: Any, body: Any) -> Any:
        job = self.get(plural, name)
        with self.changed:
            for part in ("annotations", "labels"):
                job["metadata"].setdefault(part, {}).update(body["metadata"].get(part) or {})
            self._touch(job)
        return job


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeKubernetes

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer("GET")

    def do_POST(self) -> None:
        self.answer("POST")

    def do_PATCH(self) -> None:
        self.answer("PATCH")

    def do_DELETE(self) -> None:
        self.answer("DELETE")

    def answer(self, method: Any) -> None:
        fake = self.fake
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        fake.requests.append((method, self.path))
        split = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(split.query).items()}
        try:
            self.inject(method)
            given = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if given not in ("good", "admin"):
                raise Refusal(401, "Unauthorized")
            parts = split.path.strip("/").split("/")
            rest = parts[parts.index(NAMESPACE) + 1 :] if NAMESPACE in parts else []
            if not rest:
                raise Refusal(404, None)
            if parts[0] == "api":
                self.core(rest, query)
            elif query.get("watch"):
                self.watch(rest[0], query)
            elif method == "GET" and len(rest) == 1:
                if given != "admin":
                    raise Refusal(403, f"{rest[0]} is forbidden: no right to list")
                self.send(200, {"items": fake.matching(rest[0], query["labelSelector"])})
            elif method == "POST":
                self.send(201, fake.create(rest[0], body))
            elif method == "PATCH":
                self.send(200, fake.patch(rest[0], rest[1], body))
            elif method == "DELETE":
                self.send(200, fake.delete(rest[0], rest[1]))
            else:
                self.send(200, fake.get(rest[0], rest[1]))
        except Refusal as refusal:
            self.refuse(refusal)
        except ConnectionAbortedError:
            self.close_connection = True

    def inject(self, method: Any) -> None:
        for fault in self.fake.faults:
            kind, pattern, status, times, message, headers = fault
            if times > 0 and kind == method and pattern.search(self.path):
                fault[3] -= 1
                if status == "drop":
                    raise ConnectionAbortedError
                if status == "hang":  # a connection that is open and dead
                    self.fake.closing.wait(600)
                    raise ConnectionAbortedError
                if status == "slow":
                    time.sleep(1)
                    return
                if status == "login page":
                    self.page()
                    raise ConnectionAbortedError
                raise Refusal(status, message, headers)

    def core(self, rest: Any, query: Any) -> None:
        fake = self.fake
        if rest[0] == "pods" and rest[-1] == "log":
            self.pod_log(rest[1], query)
        elif rest[0] == "pods" and "fieldSelector" in query:
            name = query["fieldSelector"].removeprefix("metadata.name=")
            self.send(200, {"items": [fake.pods[name]] if name in fake.pods else []})
        elif rest[0] == "pods":
            wanted = dict(term.split("=") for term in query["labelSelector"].split(","))
            found = [
                pod
                for pod in list(fake.pods.values())
                if all(pod["metadata"]["labels"].get(k) == v for k, v in wanted.items())
            ]
            self.send(200, {"items": found})
        elif rest[0] == "resourcequotas":
            self.send(200, {"items": fake.quotas})
        elif rest[0] == "events":
            self.send(200, {"items": fake.events})
        else:
            raise Refusal(404, None)

    def watch(self, plural: Any, query: Any) -> None:
        fake = self.fake
        self.begin_stream()
        if fake.watch_errors or query["resourceVersion"] == "1":
            # The version is too old, which is told within the stream.
            fake.watch_errors = max(fake.watch_errors - 1, 0)
            gone = {"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired"}
            self.chunk(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            self.chunk(b"")
            return
        end = time.monotonic() + float(query["timeoutSeconds"])
        name = query["fieldSelector"].split("=")[1]
        with fake.changed:
            while time.monotonic() < end:
                job = fake.jobs.get((plural, name))
                if job and job["metadata"]["resourceVersion"] != query["resourceVersion"]:
                    event = {"type": "MODIFIED", "object": job}
                    self.chunk(json.dumps(event).encode() + b"\n")
                    break
                fake.changed.wait(0.05)
        self.chunk(b"")

    def pod_log(self, name: Any, query: Any) -> None:
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
                    line = line.removesuffix("<cut>")
                    text = line if query.get("timestamps") else line.partition(" ")[2]
                    self.chunk(text.encode() + b"\n")
                if lines[sent - 1].endswith("<cut>"):
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
            self.send(404, "404 page not found\n")
            return
        status = {
            "kind": "Status", "status": "Failure", "message": refusal.message,
            "reason": REASONS.get(refusal.status), "code": refusal.status,
        }  # fmt: skip
        self.send(refusal.status, status, refusal.headers)

    def page(self) -> None:
        """What a proxy in between may answer: success, but not Kubernetes."""
        data = b"<html>Please log in</html>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, data: Any) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def send(self, status: Any, body: Any, headers: Any = ()) -> None:
        text = isinstance(body, str)
        data = (body if text else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if text else "application/json")
        self.send_header("Content-Length", str(len(data)))
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)


class Lines:
    """A Progress that keeps the step's log."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, message: Any) -> None:
        self.lines.append(message)

    @property
    def text(self) -> Any:
        return "\n".join(self.lines)


@pytest.fixture
def kubernetes() -> Iterator[FakeKubernetes]:
    fake = FakeKubernetes()
    handler = type("BoundHandler", (Handler,), {"fake": fake})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    yield fake
    fake.closing.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def lines() -> Any:
    return Lines()


def api_client(url: Any, token: Any = "good") -> Any:
    from kubernetes import client

    settings = client.Configuration()
    settings.host = url
    settings.retries = False
    settings.api_key = {"authorization": token}
    settings.api_key_prefix = {"authorization": "Bearer"}
    return client.ApiClient(settings)


@pytest.fixture
def cluster(kubernetes: Any, lines: Any) -> Any:
    """A client with short pauses."""
    return Cluster(
        api_client(kubernetes.url),
        NAMESPACE,
        lines.log,
        patience_s=20,
        unauthorized_s=1,
        timeout_s=1.0,
        silence_s=1.0,
        sleep=lambda seconds: time.sleep(min(seconds, 0.05)),
    )


@pytest.fixture
def timing() -> Any:
    return Timing(
        poll_s=0.2, hopeless_s=0.5, image_pull_s=0.5, no_pods_s=0.3, annotate_s=0, log_pause_s=0.1
    )


@pytest.fixture
def request_() -> Any:
    return LaunchRequest(
        name="cosmos-train-0123456789abcdef0123",
        image="registry.example/train@sha256:" + "0" * 64,
        command=("-m", "components.lib.train", "--yes", "--factory", "tiny_diffusion"),
        nodes=2,
        gpus_per_node=0,
        processes_per_node=1,
        memory="2Gi",
        active_deadline_seconds=3600,
        start_timeout_seconds=60,
    )
