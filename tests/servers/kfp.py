"""A KFP API server in memory that holds requests to the API of the package kfp-server-api.

It reproduces, for pipelines, versions, experiments, runs and recurring runs:

- every path, method, query parameter and body type of the generated client; what a request has
  that they do not know is noted in ``violations`` (a body is refused with 400 besides), and so is
  what an answer of this fake has (`tests.servers.kfp_api`);
- filters by ``display_name``, newest runs first, recurring runs in small pages with
  ``next_page_token``;
- errors in JSON: gRPC's code and a message, as the client's model GoogleRpcStatus has them; a
  second pipeline of the same name is a 409, an unknown id a 404, a wrong token or cookie a 401.

Nothing of it is a recording: no KFP server was at hand. The official client is the oracle.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.servers.faults import Faults, Refusal, Trouble, meet
from tests.servers.kfp_api import Route, read_routes, violations
from tests.servers.loopback import Json, QuietHandler, serving

ROOT = "/apis/v2beta1"
PAGE = 2  # small pages, so that paging is tested
GRPC_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 429: 8, 501: 12, 503: 14, 504: 4}
Table = dict[str, Json]


@contextmanager
def fake_kfp() -> Iterator[FakeKfp]:
    """A server that runs; ``url`` says where."""
    fake = FakeKfp()
    with serving(type("Handler", (KfpHandler,), {"fake": fake})) as fake.url:
        yield fake
        fake.closing.set()


class FakeKfp:
    """The server's objects by their ids. ``token`` and ``cookie``, where set, must be shown."""

    def __init__(self) -> None:
        self.routes = read_routes()
        self.url = ""
        self.token = ""
        self.cookie = ""
        self.multi_user = False
        self.pipelines: Table = {}
        self.versions: Table = {}
        self.experiments: Table = {}
        self.runs: Table = {}
        self.schedules: Table = {}
        self.faults = Faults()
        self.requests: list[tuple[str, str]] = []
        self.violations: list[str] = []
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self.count = 0

    # -- played by the tests -----------------------------------------------------------------

    def fail(
        self,
        method: str,
        path: str,
        trouble: Trouble,
        times: int = 1,
        *,
        after: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """The next ``times`` requests meet trouble, ``after``: though they are carried out."""
        self.faults.order(
            method, path, trouble, times, after=after, message="trouble", headers=headers
        )

    def finish(self, run_id: str, state: str, error: str = "") -> None:
        """A run gets to a state."""
        self.runs[run_id]["state"] = state
        if error:
            self.runs[run_id]["error"] = {"code": 2, "message": error}

    def tasks(self, run_id: str, **states: str) -> None:
        """The tasks of a run, each with a pod."""
        self.runs[run_id]["run_details"] = {
            "task_details": [
                {"task_id": name, "run_id": run_id, "display_name": name, "state": state,
                 "child_tasks": [{"pod_name": f"pod-{name}"}]}
                for name, state in states.items()
            ]
        }  # fmt: skip

    # -- asked by clients --------------------------------------------------------------------

    def respond(self, route: Route, names: list[str], query: dict[str, str], body: Json) -> Json:
        """Carry out an operation; ``names`` are what stands for the {names} of its path."""
        predicate = query.get("filter")
        wanted = json.loads(predicate)["predicates"][0]["stringValue"] if predicate else None

        def matching(items: Iterable[Json]) -> list[Json]:
            return [item for item in items if wanted in (None, item["display_name"])]

        match route.method, route.path.removeprefix(ROOT):
            case _, "/healthz":
                return {"multi_user": self.multi_user}
            case "GET", "/pipelines":
                return {"pipelines": matching(self.pipelines.values())}
            case "POST", "/pipelines":
                if any(p["display_name"] == body["display_name"] for p in self.pipelines.values()):
                    raise Refusal(409, "pipeline already exists")
                return self.add(self.pipelines, "pipeline_id", body)
            case "GET", "/pipelines/{pipeline_id}/versions":
                mine = [v for v in self.versions.values() if v["pipeline_id"] == names[0]]
                return {"pipeline_versions": matching(mine)}
            case "POST", "/pipelines/upload_version":
                if query["pipelineid"] not in self.pipelines:
                    raise Refusal(404, "pipeline not found")
                version = {"pipeline_id": query["pipelineid"], "display_name": query["name"],
                           "name": query["name"], **body}  # fmt: skip
                return self.add(self.versions, "pipeline_version_id", version)
            case "GET", "/experiments":
                return {"experiments": matching(self.experiments.values())}
            case "POST", "/experiments":
                return self.add(self.experiments, "experiment_id", body)
            case "POST", "/runs":
                if body["pipeline_version_reference"]["pipeline_version_id"] not in self.versions:
                    raise Refusal(404, "version not found")
                return self.add(self.runs, "run_id", {**body, "state": "PENDING"})
            case "GET", "/runs":
                return {"runs": matching(list(self.runs.values())[::-1])}
            case "GET", "/runs/{run_id}":
                return self.one(self.runs, names[0])
            case "POST", "/runs/{run_id}:terminate":
                self.one(self.runs, names[0])["state"] = "CANCELED"
                return {}
            case "POST", "/recurringruns":
                status = "ENABLED" if body["mode"] == "ENABLE" else "DISABLED"
                return self.add(self.schedules, "recurring_run_id", {**body, "status": status})
            case "GET", "/recurringruns":
                return self.page(matching(self.schedules.values()), query)
            case "DELETE", "/recurringruns/{recurring_run_id}":
                self.one(self.schedules, names[0])
                del self.schedules[names[0]]
                return {}
            case "POST", "/recurringruns/{recurring_run_id}:enable":
                self.one(self.schedules, names[0])["status"] = "ENABLED"
                return {}
            case "POST", "/recurringruns/{recurring_run_id}:disable":
                self.one(self.schedules, names[0])["status"] = "DISABLED"
                return {}
            case method, path:
                raise Refusal(501, f"the fake has no {method} {path}")

    def page(self, items: list[Json], query: dict[str, str]) -> Json:
        """A page of recurring runs, and where the next one begins."""
        start = int(query.get("page_token") or 0)
        end = start + min(int(query.get("page_size") or PAGE), PAGE)
        answer: Json = {"recurringRuns": items[start:end]}
        return {**answer, "next_page_token": str(end)} if end < len(items) else answer

    def add(self, table: Table, key: str, fields: Json) -> Json:
        """A new object, with an id."""
        self.count += 1
        identity = f"{key.removesuffix('_id')}-{self.count}"
        table[identity] = {**fields, key: identity, "created_at": "2026-01-01T00:00:00Z"}
        return table[identity]

    def one(self, table: Table, identity: str) -> Json:
        """An object by its id."""
        if identity not in table:
            raise Refusal(404, f"{identity} not found")
        return table[identity]


class KfpHandler(QuietHandler):
    """Answers from the state of its class's ``fake``, and notes what does not fit the API."""

    fake: FakeKfp

    def respond(self) -> None:
        """Any request."""
        fake, data, split = self.fake, self.body(), urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(split.query).items()}
        fake.requests.append((self.command, split.path))
        try:
            self.trouble(after=False)
            self.authenticate(split.path)
            with fake.lock:
                answer = self.answer(split.path, query, data)
            self.trouble(after=True)
            self.send_json(200, answer)
        except Refusal as refusal:
            code = GRPC_CODES.get(refusal.status, 13)
            status: Json = {"code": code, "message": refusal.message, "details": []}
            self.send_json(refusal.status, status, refusal.headers)
        except ConnectionAbortedError:
            self.close_connection = True

    do_GET = do_POST = do_DELETE = respond

    def trouble(self, *, after: bool) -> None:
        if fault := self.fake.faults.take(self.command, self.path, after=after):
            meet(fault, self, self.fake.closing)

    def authenticate(self, path: str) -> None:
        fake = self.fake
        if fake.token and self.headers.get("Authorization") != f"Bearer {fake.token}":
            raise Refusal(401, "Unauthenticated")
        known = fake.cookie in ("", self.headers.get("Cookie"))
        if not known and "healthz" not in path:
            raise Refusal(401, "Unauthenticated")

    def answer(self, path: str, query: dict[str, str], data: bytes) -> Json:
        """The answer, with the request and itself compared with the API."""
        fake = self.fake
        candidates = [
            (route, match)
            for route in fake.routes
            if route.method == self.command and (match := route.regex.match(path))
        ]
        if not candidates:
            fake.violations.append(f"{self.command} {path} is no operation of KFP")
            raise Refusal(404, "Not Found")
        route, match = min(candidates, key=lambda item: item[0].path.count("{"))
        for name in query:
            if name not in route.query:
                fake.violations.append(f"{route.path} has no query parameter {name}")
        body: Json = {}
        if route.body:
            body = json.loads(data)
            if problems := list(violations(route.body, body)):
                fake.violations += problems
                raise Refusal(400, "; ".join(problems))
        elif path.endswith("/upload_version"):
            body = {"pipeline_spec": uploaded(data)}
        answer = fake.respond(route, [unquote(part) for part in match.groups()], query, body)
        if route.answer and route.answer != "object":
            wrong = violations(route.answer, answer, "answer")
            fake.violations += [f"fake: {problem}" for problem in wrong]
        return answer


def uploaded(data: bytes) -> Json:
    """The pipeline in a multipart upload: the first document of its YAML."""
    text = data.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0].decode()
    if not text:
        raise Refusal(400, "no file")
    return dict(next(iter(yaml.safe_load_all(text))))
