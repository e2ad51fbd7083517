"""The Kubernetes API as the launcher needs it: few calls, each of which survives passing errors.

Retried with growing pauses: connections refused, reset or timed out, 401 (a token that was just
rotated), 408, 410, 429 (after the server's Retry-After), 5xx, and an answer that is no object (the
page of a proxy in between). No call waits for ever: each has a timeout. Every call may be repeated:
names are deterministic, so a create that is answered twice ends in 409, which means "it exists".
Only a problem that lasts longer than ``patience_s`` (an API server upgrade fits in) ends a call,
and the message then says that the job itself goes on.

A watch is only an alarm clock: `wait_for_change` returns early when the job changes, and whatever
goes wrong with it (410, a dropped connection, no right to watch) means waiting the whole interval.
What is true is read afresh every time, so nothing can be missed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from components.lib.contract import UserError
from components.lib.system.patience import Patience

_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
_NAMESPACE = _TOKEN.with_name("namespace")
_PASSING = frozenset({401, 408, 410, 429, 500, 502, 503, 504})
_LONGEST_PAUSE = 30.0
# How servers say that a resource is not installed; a missing object is told in other words.
_NO_SUCH_KIND = ("404 page not found", "could not find the requested resource")


class ApiError(UserError):
    """The API server's final answer. ``status`` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Cluster:
    """One namespace of a Kubernetes API server.

    ``connect`` makes one from the environment. ``silence_s`` is how long a followed log may say
    nothing before its connection counts as dead. ``reload`` gives fresh credentials after a 401;
    ``sleep`` is replaced in tests.
    """

    def __init__(
        self,
        api: Any,
        namespace: str,
        say: Callable[[str], None],
        *,
        patience_s: float = 1800.0,
        unauthorized_s: float = 120.0,
        timeout_s: float = 30.0,
        silence_s: float = 300.0,
        reload: Callable[[], Any] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.api, self.namespace, self.say = api, namespace, say
        self.patience_s, self.unauthorized_s, self.timeout_s = patience_s, unauthorized_s, timeout_s
        self.silence_s = silence_s
        self.reload, self.sleep = reload, sleep

    @classmethod
    def connect(cls, namespace: str | None, say: Callable[[str], None]) -> Cluster:
        """The cluster this process runs in, else the one KUBECONFIG names."""
        api, own = _load()
        return cls(api, namespace or own, say, reload=lambda: _load()[0])

    # -- objects -----------------------------------------------------------------------------

    def create(self, group: str, version: str, plural: str, body: Mapping[str, Any]) -> None:
        """Create an object, with unknown fields refused where the server can (1.25 on)."""
        query = [("fieldValidation", "Strict")]
        self.request("POST", self._path(group, version, plural), query=query, body=body)

    def get(self, group: str, version: str, plural: str, name: str) -> dict[str, Any] | None:
        """An object, or None when there is none of this name."""
        try:
            return self.request("GET", self._path(group, version, plural, name))
        except ApiError as error:
            if error.status == 404 and not _no_such_kind(error):
                return None
            raise

    def delete(self, group: str, version: str, plural: str, name: str) -> None:
        """Delete an object and what belongs to it; that it is gone already is no error."""
        body = {"propagationPolicy": "Background"}
        try:
            self.request("DELETE", self._path(group, version, plural, name), body=body)
        except ApiError as error:
            if error.status != 404:
                raise

    def annotate(
        self,
        group: str,
        version: str,
        plural: str,
        name: str,
        values: Mapping[str, str],
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Set annotations and labels. A single try: the next progress line brings another."""
        body = {"metadata": {"annotations": dict(values), "labels": dict(labels or {})}}
        self.request(
            "PATCH",
            self._path(group, version, plural, name),
            body=body,
            content_type="application/merge-patch+json",
            patience_s=0,
        )

    def find(
        self, kind: str, group: str = "", version: str = "v1", **selectors: str
    ) -> list[dict[str, Any]]:
        """Objects of a kind (by default a core one, such as ``pods``) by selectors."""
        query = list(selectors.items())
        answer = self.request("GET", self._path(group, version, kind), query=query)
        return list(answer.get("items") or [])

    # -- streams -----------------------------------------------------------------------------

    def pod_log(self, pod: str, container: str, *, lines: int, previous: bool = False) -> str:
        """The last lines of a container; empty when they are not to be had."""
        try:
            return "\n".join(self.log_lines(pod, container, lines, previous=previous))
        except _stream_errors():
            return ""

    def log_lines(
        self, pod: str, container: str, lines: int, *, previous: bool = False
    ) -> list[str]:
        """The last lines of a container. Raises `ApiError`."""
        query = [("container", container), ("tailLines", str(lines))]
        if previous:
            query.append(("previous", "true"))
        with self._stream(self._path("", "v1", "pods", pod) + "/log", query) as response:
            data: bytes = response.read()
        return data.decode(errors="replace").splitlines()

    def follow_log(self, pod: str, container: str, since: str | None) -> Iterator[str]:
        """Lines, each with its timestamp in front, until the container ends or the line drops."""
        query = [("container", container), ("follow", "true"), ("timestamps", "true")]
        if since:
            query.append(("sinceTime", since))
        path = self._path("", "v1", "pods", pod) + "/log"
        with self._stream(path, query, timeout_s=self.silence_s) as response:
            rest = b""
            for chunk in response.stream(4096, decode_content=False):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield line.decode(errors="replace")
            if rest:
                yield rest.decode(errors="replace")

    def wait_for_change(
        self, group: str, version: str, plural: str, job: Mapping[str, Any], seconds: float
    ) -> None:
        """Return when the job changes, and after ``seconds`` in any case."""
        started = time.monotonic()
        metadata = job["metadata"]
        query = [
            ("watch", "true"),
            ("fieldSelector", f"metadata.name={metadata['name']}"),
            ("resourceVersion", str(metadata.get("resourceVersion", ""))),
            ("timeoutSeconds", str(max(int(seconds), 1))),
        ]
        path = self._path(group, version, plural)
        try:
            with self._stream(path, query, timeout_s=seconds + 1) as response:
                for chunk in response.stream(65536, decode_content=False):
                    if b'"ERROR"' not in chunk[:64]:
                        self.sleep(min(0.2, seconds))  # a burst of changes is one change
                        return
        except _stream_errors():
            pass
        self.sleep(max(0.0, seconds - (time.monotonic() - started)))

    # -- transport ---------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        patience_s: float | None = None,
    ) -> dict[str, Any]:
        """One call, repeated over passing errors. Raises `ApiError` for a final answer."""
        patient_s = self.patience_s if patience_s is None else patience_s
        patience = Patience(
            lambda problem: self.say(f"Kubernetes API: {problem}; trying again."),
            longest_s=_LONGEST_PAUSE,
            sleep=self.sleep,
        )
        while True:
            try:
                return self._once(method, path, list(query), body, content_type)
            except _passing_errors() as error:
                status, problem, after = _describe(error)
            if status and status not in _PASSING:
                raise ApiError(status, refusal(method, path, status, problem, self.namespace))
            limit = min(patient_s, self.unauthorized_s) if status == 401 else patient_s
            if not patience.wait(problem, limit, after):
                waited = patience.waited
                raise ApiError(status, lasting(method, path, status, problem, waited))
            if status == 401 and self.reload is not None:
                self.api = self.reload()

    def _once(
        self,
        method: str,
        path: str,
        query: list[tuple[str, str]],
        body: Mapping[str, Any] | None,
        content_type: str,
    ) -> dict[str, Any]:
        answer: Any = self.api.call_api(
            path,
            method,
            query_params=query,
            header_params={"Accept": "application/json", "Content-Type": content_type},
            body=dict(body) if body is not None else None,
            response_type="object",
            auth_settings=["BearerToken"],
            _return_http_data_only=True,
            _request_timeout=_seconds(self.timeout_s, self.timeout_s),
        )
        if not isinstance(answer, dict):
            from urllib3.exceptions import ProtocolError

            raise ProtocolError(f"not an answer of Kubernetes: {str(answer)[:100]!r}")
        return answer

    def _stream(
        self, path: str, query: list[tuple[str, str]], timeout_s: float | None = None
    ) -> _Stream:
        try:
            response = self.api.call_api(
                path,
                "GET",
                query_params=query,
                header_params={"Accept": "*/*"},
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=_seconds(self.timeout_s, timeout_s or self.timeout_s),
            )
        except _api_exception() as error:
            status, problem, _ = _describe(error)
            raise ApiError(status, problem) from error
        return _Stream(response)

    def _path(self, group: str, version: str, plural: str, name: str = "") -> str:
        root = f"/apis/{group}/{version}" if group else f"/api/{version}"
        path = f"{root}/namespaces/{quote(self.namespace, safe='')}/{plural}"
        return f"{path}/{quote(name, safe='')}" if name else path


def _seconds(connect: float, silence: float) -> tuple[float, float]:
    """A timeout as the client takes it: of anything but an int or a pair it makes none at all.

    The second number limits the silence between two pieces of an answer, not a whole stream.
    """
    return connect, silence


class _Stream:
    """Closes a response that was not read to its end, instead of giving it back to the pool."""

    def __init__(self, response: Any) -> None:
        self.response = response

    def __enter__(self) -> Any:
        return self.response

    def __exit__(self, *_exc: object) -> None:
        self.response.close()
        self.response.release_conn()


def refusal(method: str, path: str, status: int, problem: str, namespace: str) -> str:
    """What a final refusal means and what to do."""
    what = f"{method} {path}"
    if status == 403:
        if "quota" in problem:
            return f"The namespace's quota refuses it: {problem}. Free some, or raise the quota."
        return (
            f"Kubernetes refuses {what}: {problem}. Give the step's ServiceAccount the Role "
            f"'cosmos-launcher' (manifests/base) in namespace '{namespace}'."
        )
    if status == 404 and any(words in problem for words in _NO_SUCH_KIND):
        kind = path.split("/")[-2 if method != "POST" else -1]
        return (
            f"This cluster knows no '{kind}' ({what}). Install the operator that brings the CRD "
            "(training-operator for PyTorchJobs, Kubeflow Trainer for TrainJobs), or choose "
            "another launcher."
        )
    return f"Kubernetes answers {status} to {what}: {problem}"


def lasting(method: str, path: str, status: int, problem: str, waited: float) -> str:
    """What a passing error that did not pass means and what to do."""
    if status == 401:
        return (
            f"Kubernetes does not accept the credentials for {method} {path}: {problem}. Check "
            "the ServiceAccount's token (in a pod) or KUBECONFIG. A job that runs goes on; the "
            "next try of this step finds it again."
        )
    return (
        f"The Kubernetes API has not answered {method} {path} for {waited:.0f} s: {problem}. A "
        "job that runs goes on; the next try of this step finds it again."
    )


def _no_such_kind(error: ApiError) -> bool:
    return "knows no" in str(error)


def _describe(error: Exception) -> tuple[int, str, float]:
    """HTTP status (0: none), the server's sentence, and how long it asks to wait."""
    status = int(getattr(error, "status", None) or 0)
    if not status:
        return 0, f"{type(error).__name__}: {error}", 0.0
    body = getattr(error, "body", None)
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body or "")
    try:
        problem = str(json.loads(text).get("message") or text)
    except (ValueError, AttributeError):
        problem = text or str(getattr(error, "reason", ""))
    headers = getattr(error, "headers", None) or {}
    after = headers.get("Retry-After", "")
    return status, f"{status} {problem.strip()[:500]}", float(after) if after.isdigit() else 0.0


def _api_exception() -> type[Exception]:
    from kubernetes.client.exceptions import ApiException

    kind: type[Exception] = ApiException
    return kind


def _network_errors() -> tuple[type[Exception], ...]:
    from urllib3.exceptions import HTTPError

    return (HTTPError, OSError)


def _stream_errors() -> tuple[type[Exception], ...]:
    return (ApiError, *_network_errors())


def _passing_errors() -> tuple[type[Exception], ...]:
    return (_api_exception(), *_network_errors())


def _load() -> tuple[Any, str]:
    """An API client and the namespace of the environment."""
    from kubernetes import client, config

    settings = client.Configuration()
    namespace = "default"
    try:
        if os.environ.get("KUBERNETES_SERVICE_HOST") and _TOKEN.is_file():
            config.load_incluster_config(client_configuration=settings)
            namespace = _NAMESPACE.read_text().strip()
        else:
            config.load_kube_config(client_configuration=settings)
            _, active = config.list_kube_config_contexts()
            namespace = active["context"].get("namespace") or "default"
    except config.ConfigException as error:
        raise UserError(
            f"There is no Kubernetes cluster to launch on: {error}. Run the step in a cluster, "
            "set KUBECONFIG, or use launcher=process."
        ) from error
    settings.retries = False  # the pauses here are the retries
    return client.ApiClient(settings), namespace
