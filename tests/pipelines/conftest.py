"""A KFP API server in memory that holds requests to the API of the package kfp-server-api.

Paths, methods, query parameters and body types are read from the generated client's source, and
bodies are checked against its models, field by field: what it does not know is a violation.
"""

import inspect
import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import kfp_server_api
import pytest
import yaml
from kfp_server_api import models

from pipelines.client import Connection, Server


class Route:
    def __init__(self, path: Any, method: Any, query: Any, body: Any, answer: Any) -> None:
        pattern = re.sub(r"\\\{[^}]+\\\}", "([^/:]+)", re.escape(path))
        self.regex = re.compile(f"^{pattern}$")
        self.path, self.method, self.query = path, method, query
        self.body, self.answer = body, answer


def read_routes() -> Any:
    """Every operation of the generated client."""
    routes = []
    for name, service in inspect.getmembers(kfp_server_api, inspect.isclass):
        if not name.endswith("ServiceApi"):
            continue
        source = inspect.getsource(service)
        for part in re.split(r"\n    def ", source):
            call = re.search(r"call_api\(\s*'([^']+)', '([A-Z]+)'", part)
            if not call:
                continue
            query = set(re.findall(r"query_params\.append\(\('([^']+)'", part))
            body = re.search(r"body_params = local_var_params\['(\w+)'\]", part)
            # The client names a body after its type: recurring_run is a V2beta1RecurringRun.
            kind = "V2beta1" + body[1].title().replace("_", "") if body else None
            answer = re.search(r"response_type='(\w+)'", part)
            routes.append(
                Route(call[1], call[2], query, kind, answer[1] if answer else None)
            )  # fmt: skip
    return routes


def violations(kind: Any, value: Any, where: Any = "body") -> Any:
    """What a model of the generated client has against a JSON value."""
    if match := re.fullmatch(r"list\[(.*)\]", kind):
        if not isinstance(value, list):
            yield f"{where} is not a list"
            return
        for index, item in enumerate(value):
            yield from violations(match[1], item, f"{where}[{index}]")
    elif match := re.fullmatch(r"dict\(str, (.*)\)", kind):
        if not isinstance(value, dict):
            yield f"{where} is not a mapping"
    elif hasattr(models, kind):
        model = getattr(models, kind)
        if hasattr(model, "allowable_values"):
            if value not in model.allowable_values:
                yield f"{where} is {value!r}, not one of {model.allowable_values}"
            return
        names = {json_name: attr for attr, json_name in model.attribute_map.items()}
        for key, item in value.items():
            if key not in names:
                yield f"{where} has no field {key}"
            else:
                yield from violations(model.openapi_types[names[key]], item, f"{where}.{key}")
    else:
        plain: dict[str, Any] = {"str": str, "int": int, "bool": bool}
        if where.endswith(".max_concurrency"):  # protobuf's JSON takes an int64 in both forms
            plain["str"] = (str, int)
        if kind in plain and not isinstance(value, plain[kind]):
            yield f"{where} is {value!r}, not {kind}"


class FakeKfp:
    def __init__(self) -> None:
        self.routes = read_routes()
        self.url = ""
        self.token = None
        self.cookie = ""
        self.multi_user = False
        self.pipelines: dict[str, Any] = {}
        self.versions: dict[str, Any] = {}
        self.experiments: dict[str, Any] = {}
        self.runs: dict[str, Any] = {}
        self.schedules: dict[str, Any] = {}
        self.faults: list[Any] = []
        self.requests: list[tuple[str, str]] = []
        self.violations: list[str] = []
        self.headers: dict[str, str] = {}  # of refusals
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self.count = 0

    def fail(
        self,
        method: Any,
        pattern: Any,
        status: Any,
        times: Any = 1,
        after: Any = False,
        message: Any = "trouble",
    ) -> None:
        """``after``: do what was asked and then lose the answer."""
        self.faults.append([method, re.compile(pattern), status, times, after, message])

    def identity(self, prefix: Any) -> Any:
        self.count += 1
        return f"{prefix}-{self.count}"

    def finish(self, run_id: Any, state: Any, error: Any = None) -> None:
        self.runs[run_id]["state"] = state
        if error:
            self.runs[run_id]["error"] = {"code": 2, "message": error}

    def tasks(self, run_id: Any, **states: Any) -> None:
        self.runs[run_id]["run_details"] = {
            "task_details": [
                {"task_id": name, "run_id": run_id, "display_name": name, "state": state,
                 "child_tasks": [{"pod_name": f"pod-{name}"}]}
                for name, state in states.items()
            ]
        }  # fmt: skip

    # -- operations --------------------------------------------------------------------------

    def respond(self, route: Any, found: Any, query: Any, body: Any) -> Any:
        name = f"{route.method} {route.path}"
        where = query.get("filter")
        wanted = json.loads(where)["predicates"][0]["stringValue"] if where else None

        def matching(items: Any) -> Any:
            return [item for item in items if wanted in (None, item["display_name"])]

        if route.path.endswith("/healthz"):
            return {"multi_user": self.multi_user}
        if name == "GET /apis/v2beta1/pipelines":
            return {"pipelines": matching(self.pipelines.values())}
        if name == "POST /apis/v2beta1/pipelines":
            if any(p["display_name"] == body["display_name"] for p in self.pipelines.values()):
                raise Refusal(409, "pipeline already exists")
            return self.add(self.pipelines, "pipeline_id", {**body})
        if name == "GET /apis/v2beta1/pipelines/{pipeline_id}/versions":
            mine = [v for v in self.versions.values() if v["pipeline_id"] == found[0]]
            return {"pipeline_versions": matching(mine)}
        if route.path.endswith("/upload_version"):
            if not body:
                raise Refusal(400, "no file")
            if query["pipelineid"] not in self.pipelines:
                raise Refusal(404, "pipeline not found")
            uploaded = body.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]
            spec = next(iter(yaml.safe_load_all(uploaded.decode())))
            version = {"pipeline_id": query["pipelineid"], "display_name": query["name"],
                       "name": query["name"], "pipeline_spec": spec}  # fmt: skip
            return self.add(self.versions, "pipeline_version_id", version)
        if name == "GET /apis/v2beta1/experiments":
            return {"experiments": matching(self.experiments.values())}
        if name == "POST /apis/v2beta1/experiments":
            return self.add(self.experiments, "experiment_id", {**body})
        if name == "POST /apis/v2beta1/runs":
            if body["pipeline_version_reference"]["pipeline_version_id"] not in self.versions:
                raise Refusal(404, "version not found")
            return self.add(self.runs, "run_id", {**body, "state": "PENDING"})
        if name == "GET /apis/v2beta1/runs":
            return {"runs": matching(list(self.runs.values())[::-1])}
        if route.path == "/apis/v2beta1/runs/{run_id}":
            return self.one(self.runs, found[0])
        if route.path.endswith(":terminate"):
            self.one(self.runs, found[0])["state"] = "CANCELED"
            return {}
        if name == "POST /apis/v2beta1/recurringruns":
            made = {**body, "status": "ENABLED" if body["mode"] == "ENABLE" else "DISABLED"}
            return self.add(self.schedules, "recurring_run_id", made)
        if name == "GET /apis/v2beta1/recurringruns":
            items = matching(self.schedules.values())
            start = int(query.get("page_token") or 0)
            size = min(int(query["page_size"]), 2)  # small pages, so that paging is tested
            answer = {"recurringRuns": items[start : start + size]}
            if start + size < len(items):
                answer["next_page_token"] = str(start + size)
            return answer
        if "recurringruns" not in route.path or not found:
            raise Refusal(501, f"the fake has no {name}")
        schedule = self.one(self.schedules, found[0])
        if route.method == "DELETE":
            del self.schedules[found[0]]
        else:
            schedule["status"] = "ENABLED" if route.path.endswith(":enable") else "DISABLED"
        return {}

    def add(self, table: Any, key: Any, item: Any) -> Any:
        item[key] = self.identity(key.removesuffix("_id"))
        item["created_at"] = "2026-01-01T00:00:00Z"
        table[item[key]] = item
        return item

    def one(self, table: Any, key: Any) -> Any:
        if key not in table:
            raise Refusal(404, f"{key} not found")
        return table[key]


class Refusal(Exception):
    def __init__(self, status: Any, message: Any) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeKfp

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.handle_call()

    def do_POST(self) -> None:
        self.handle_call()

    def do_DELETE(self) -> None:
        self.handle_call()

    def handle_call(self) -> None:
        fake = self.fake
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        split = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(split.query).items()}
        fake.requests.append((self.command, split.path))
        try:
            fault = self.fault(after=False)
            if fault:
                raise fault
            if fake.token and self.headers.get("Authorization") != f"Bearer {fake.token}":
                raise Refusal(401, "Unauthenticated")
            known = fake.cookie in ("", self.headers.get("Cookie"))
            if not known and "healthz" not in split.path:
                raise Refusal(401, "Unauthenticated")
            with fake.lock:
                answer = self.answer(split.path, query, data)
            fault = self.fault(after=True)
            if fault:
                raise fault
            self.send(200, answer)
        except Refusal as refusal:
            if refusal.status == "hang":  # a connection that is open and dead
                fake.closing.wait(600)
            if refusal.status in ("drop", "hang"):
                self.close_connection = True
            else:
                body = {"error": refusal.message, "message": refusal.message}
                self.send(refusal.status, body, fake.headers)

    def fault(self, after: Any) -> Any:
        for fault in self.fake.faults:
            method, pattern, status, times, when, message = fault
            if when is after and times > 0 and method == self.command and pattern.search(self.path):
                fault[3] -= 1
                return Refusal(status, message)
        return None

    def answer(self, path: Any, query: Any, data: Any) -> Any:
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
        body = data
        if route.body:
            body = json.loads(data)
            fake.violations += violations(route.body, body)
        found = [unquote(part) for part in match.groups()]
        answer = fake.respond(route, found, query, body)
        if route.answer and route.answer != "object":
            fake.violations += [
                f"fake: {problem}" for problem in violations(route.answer, answer, "answer")
            ]
        return answer

    def send(self, status: Any, body: Any, headers: Any = ()) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def kfp_server(monkeypatch: Any, tmp_path: Any) -> Iterator[FakeKfp]:
    """A fake KFP that the environment points to."""
    fake = FakeKfp()
    handler = type("BoundHandler", (Handler,), {"fake": fake})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", fake.url)
    monkeypatch.setattr("kfp.client.client.Client._LOCAL_KFP_CONTEXT", str(tmp_path / "c.json"))
    for name in ("KFP_ENDPOINT", "KFP_NAMESPACE", "KFP_EXISTING_TOKEN", "KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)
    # read from KUBECONFIG or the home folder when the library is imported
    nowhere = str(tmp_path / "no-kubeconfig")
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", nowhere)
    yield fake
    fake.closing.set()
    server.shutdown()
    server.server_close()
    assert fake.violations == []


@pytest.fixture(autouse=True, scope="session")
def compiled_once() -> Iterator[None]:
    """Compiling takes a second; the same pipeline with the same images compiles once."""
    from pipelines import compiling

    original = compiling.compile_pipeline
    known: dict[Any, str] = {}

    def compiled(
        pipeline: str, images: Any = None, gpu_type: Any = None, encode_pods: int = 1
    ) -> str:
        key = (pipeline, tuple(sorted((images or {}).items())), gpu_type, encode_pods)
        if key not in known:
            known[key] = original(pipeline, images, gpu_type, encode_pods)
        return known[key]

    patch = pytest.MonkeyPatch()
    patch.setattr(compiling, "compile_pipeline", compiled)
    yield
    patch.undo()


@pytest.fixture
def server(kfp_server: Any) -> Any:
    return Server(Connection(patience_s=5, pause_s=0.01, timeout_s=0.5))


@pytest.fixture
def quick(monkeypatch: Any) -> None:
    """Commands make their own connection; let it be as impatient."""
    original = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: original(min(seconds, 0.02)))
