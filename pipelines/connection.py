"""Talking to a KFP API server: authentication as `kfp.Client` does it, calls that survive trouble.

`kfp.Client` is used for credentials (endpoint, tokens, in-cluster, KUBECONFIG) and for its
generated API. Its own waiting and error handling are not: it dies of any passing error, waits for
ever on a cancelled run, and prints links on standard output.

Reads are repeated over passing errors (connections, 401, 408, 429, 5xx). A create whose answer was
lost cannot be repeated blindly, so `created_once` looks for the object by its unique name first.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from components.lib.contract import Frozen, UserError

Answer = TypeVar("Answer")
_PASSING = frozenset({401, 408, 429, 500, 502, 503, 504})
TOKEN_VARIABLE = "KFP_EXISTING_TOKEN"  # noqa: S105 - the name of a variable, as of kfp's own CLI


class Connection(Frozen):
    """Which KFP, and how patiently. Empty fields mean what they mean to `kfp.Client`.

    ``endpoint`` falls back to KFP_ENDPOINT, KF_PIPELINES_ENDPOINT, the cluster this runs in, and
    KUBECONFIG. A bearer token is read from KFP_EXISTING_TOKEN, never from a parameter, so that it
    enters no shell history.
    """

    endpoint: str | None = None
    namespace: str | None = None
    kube_context: str | None = None
    patience_s: float = 300.0
    pause_s: float = 1.0


class Server:
    """An open connection. ``api`` is a `kfp.Client`."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.api = _client(connection)

    @property
    def namespace(self) -> str | None:
        """Namespace of runs on a multi-user KFP; None on a single-user one."""
        return self.connection.namespace or self.api.get_user_namespace() or None

    def run_url(self, run_id: str) -> str:
        """Page of a run in the KFP UI."""
        return f"{self.api._get_url_prefix()}/#/runs/details/{run_id}"

    def schedule_url(self, recurring_run_id: str) -> str:
        """Page of a recurring run in the KFP UI."""
        return f"{self.api._get_url_prefix()}/#/recurringrun/details/{recurring_run_id}"

    def call(self, what: str, function: Callable[[], Answer]) -> Answer:
        """A call that may be repeated. Raises UserError, which begins with ``what``."""
        started, pause = time.monotonic(), self.connection.pause_s
        while True:
            try:
                with _silence():
                    return function()
            except _passing_errors() as error:
                status, problem = _describe(error)
                waited = time.monotonic() - started
                if (status and status not in _PASSING) or waited > self.connection.patience_s:
                    raise UserError(self._sentence(what, status, problem)) from error
                if status == 401 and waited > min(self.connection.patience_s, 10.0):
                    raise UserError(self._sentence(what, status, problem)) from error
                time.sleep(pause)
                pause = min(pause * 2, 30.0)
                if status == 401:
                    self.api = _client(self.connection)

    def created_once(
        self, what: str, create: Callable[[], Answer], find: Callable[[], Answer | None]
    ) -> Answer:
        """Create something exactly once: after a lost answer, ``find`` says whether it exists."""
        try:
            with _silence():
                return create()
        except _passing_errors() as error:
            status, problem = _describe(error)
            if status and status not in _PASSING and status != 409:
                raise UserError(self._sentence(what, status, problem)) from error
        found = self.call(what, find)
        return found if found is not None else self.call(what, create)

    def _sentence(self, what: str, status: int, problem: str) -> str:
        host = self.api._existing_config.host
        hints = {
            0: f"Is KFP reachable at {host}? Set KF_PIPELINES_ENDPOINT or --endpoint.",
            401: f"KFP at {host} does not know you. Set {TOKEN_VARIABLE} or log in again.",
            403: f"You may not do that in namespace '{self.namespace}'. Ask its owner.",
            404: "Check the name or id.",
        }
        return f"{what}: {problem}. {hints.get(status, '')}".strip()


def _client(connection: Connection) -> Any:
    endpoint = connection.endpoint or os.environ.get("KFP_ENDPOINT")
    with _silence(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            client = _client_class()(
                host=endpoint,
                namespace=connection.namespace or os.environ.get("KFP_NAMESPACE") or "kubeflow",
                existing_token=os.environ.get(TOKEN_VARIABLE),
                kube_context=connection.kube_context,
            )
        except _passing_errors() as error:
            status, problem = _describe(error)
            raise UserError(
                f"Connecting to KFP at {endpoint or 'its default address'}: {problem} ({status}). "
                "Set KF_PIPELINES_ENDPOINT or --endpoint."
            ) from error
    host = client._existing_config.host
    if not endpoint and "localhost" in host and "KF_PIPELINES_ENDPOINT" not in os.environ:
        raise UserError(
            "It is not known where KFP is. Set KF_PIPELINES_ENDPOINT or --endpoint, for example "
            "to http://localhost:8080 after 'kubectl -n kubeflow port-forward svc/ml-pipeline-ui "
            "8080:80'."
        )
    return client


def _client_class() -> type[Any]:
    import kfp

    class Client(kfp.Client):  # type: ignore[misc, unused-ignore]
        """Asks for the server's health once; the original tries for 25 s and logs tracebacks."""

        def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
            return self._healthz_api.healthz_service_get_healthz(_request_timeout=10)

    return Client


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The client prints links that `submit` prints better."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _passing_errors() -> tuple[type[Exception], ...]:
    from kfp_server_api.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    return (ApiException, HTTPError, OSError)


def _describe(error: Exception) -> tuple[int, str]:
    """HTTP status (0: none) and the server's own sentence."""
    status = int(getattr(error, "status", None) or 0)
    if not status:
        return 0, f"{type(error).__name__}: {error}"
    body = getattr(error, "body", None)
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body or "")
    try:
        record = json.loads(text)
        text = str(record.get("message") or record.get("error") or text)
    except (ValueError, AttributeError):
        pass
    return status, f"KFP answers {status}: {text.strip()[:500] or getattr(error, 'reason', '')}"
