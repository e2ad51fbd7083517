"""Talking to a KFP API server: authentication as `kfp.Client` does it, calls that survive trouble.

`kfp.Client` is used for credentials (endpoint, tokens, in-cluster, KUBECONFIG) and for its
generated API. Its own waiting and error handling are not: it dies of any passing error, waits for
ever on a cancelled run, and prints links on standard output.

Reads are repeated over passing errors (connections, silence, 401, 408, 429, 5xx). A create whose
answer was lost cannot be repeated blindly, so `created_once` looks for the object by its unique
name first.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from components.lib.contract import Frozen, UserError
from pipelines import kfp_private

Answer = TypeVar("Answer")
log = logging.getLogger("cosmos")
_PASSING = frozenset({401, 408, 429, 500, 502, 503, 504})
# At first contact a wrong address is likelier than an outage; later it is the other way round.
_CONNECT_S = 10.0
_UNAUTHORIZED_S = 10.0
TOKEN_VARIABLE = "KFP_EXISTING_TOKEN"  # noqa: S105 - the name of a variable, as of kfp's own CLI


class Connection(Frozen):
    """Which KFP, and how patiently. Empty fields mean what they mean to `kfp.Client`.

    ``endpoint`` falls back to KFP_ENDPOINT, KF_PIPELINES_ENDPOINT, the cluster this runs in, and
    KUBECONFIG. What identifies the user comes from the variables of kfp's own command line, never
    from a parameter, so that it enters no shell history: KFP_EXISTING_TOKEN (a bearer token), or
    KFP_IAP_CLIENT_ID, KFP_OTHER_CLIENT_ID and KFP_OTHER_CLIENT_SECRET; besides, KFP_COOKIES for
    log-ins that live in a cookie (``authservice_session=…``).
    """

    endpoint: str | None = None
    namespace: str | None = None
    kube_context: str | None = None
    patience_s: float = 300.0
    pause_s: float = 1.0
    timeout_s: float = 60.0


class Server:
    """An open connection. ``api`` is a `kfp.Client`."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.api: Any = None
        self.api = self.call("Connecting to KFP", lambda: _client(connection), _CONNECT_S)

    @property
    def namespace(self) -> str | None:
        """Namespace of runs on a multi-user KFP; None on a single-user one."""
        users = self.api.get_user_namespace() if self.api is not None else None
        return self.connection.namespace or users or None

    def run_url(self, run_id: str) -> str:
        """Page of a run in the KFP UI."""
        return f"{kfp_private.page_root(self.api)}/#/runs/details/{run_id}"

    def schedule_url(self, recurring_run_id: str) -> str:
        """Page of a recurring run in the KFP UI."""
        return f"{kfp_private.page_root(self.api)}/#/recurringrun/details/{recurring_run_id}"

    def call(
        self, what: str, function: Callable[[], Answer], patience_s: float = math.inf
    ) -> Answer:
        """A call that may be repeated. Raises UserError, which begins with ``what``."""
        started, pause, said = time.monotonic(), self.connection.pause_s, ""
        while True:
            try:
                with _silence():
                    return function()
            except _passing_errors() as error:
                status, problem = _describe(error)
                limit = min(self.connection.patience_s, patience_s)
                if status == 401:
                    limit = min(limit, _UNAUTHORIZED_S)
                waited = time.monotonic() - started
                if (status and status not in _PASSING) or waited > limit:
                    raise UserError(self._sentence(what, status, problem)) from error
                if problem != said:
                    log.warning("%s: %s; trying again", what, problem)
                    said = problem
                time.sleep(min(max(pause, _retry_after(error)), max(limit - waited, 0.05)))
                pause = min(pause * 2, 30.0)
                if status == 401 and self.api is not None:
                    # Credentials may have been renewed meanwhile; if not, the next round says so.
                    with contextlib.suppress(UserError, *_passing_errors()), _silence():
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
        existing = self.call(what, find)
        return existing if existing is not None else self.call(what, create)

    def _sentence(self, what: str, status: int, problem: str) -> str:
        endpoint = self.connection.endpoint or os.environ.get("KFP_ENDPOINT")
        host = kfp_private.host_of(self.api) if self.api else endpoint or "its default address"
        hints = {
            0: f"Is KFP reachable at {host}? Set KF_PIPELINES_ENDPOINT or --endpoint.",
            401: f"KFP at {host} does not know you. Set {TOKEN_VARIABLE} or log in again.",
            403: f"You may not do that in namespace '{self.namespace}'. Ask its owner.",
            404: "Check the name or id.",
        }
        return f"{what}: {problem}. {hints.get(status, '')}".strip()


def _client(connection: Connection) -> Any:
    endpoint = connection.endpoint or os.environ.get("KFP_ENDPOINT")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = kfp_private.client_class()(
            host=endpoint,
            namespace=connection.namespace or os.environ.get("KFP_NAMESPACE") or "kubeflow",
            existing_token=os.environ.get(TOKEN_VARIABLE),
            client_id=os.environ.get("KFP_IAP_CLIENT_ID"),
            other_client_id=os.environ.get("KFP_OTHER_CLIENT_ID"),
            other_client_secret=os.environ.get("KFP_OTHER_CLIENT_SECRET"),
            cookies=os.environ.get("KFP_COOKIES"),
            kube_context=connection.kube_context,
        )
    kfp_private.limit_calls(client, connection.timeout_s)
    host = kfp_private.host_of(client)
    if not endpoint and "localhost" in host and "KF_PIPELINES_ENDPOINT" not in os.environ:
        raise UserError(
            "It is not known where KFP is. Set KF_PIPELINES_ENDPOINT or --endpoint, for example "
            "to http://localhost:8080 after 'kubectl -n kubeflow port-forward svc/ml-pipeline-ui "
            "8080:80'."
        )
    return client


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
        return 0, str(getattr(error, "reason", None) or error)
    body = getattr(error, "body", None)
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body or "")
    try:
        record = json.loads(text)
        text = str(record.get("message") or record.get("error") or text)
    except (ValueError, AttributeError):
        pass
    return status, f"KFP answers {status}: {text.strip()[:500] or getattr(error, 'reason', '')}"


def _retry_after(error: Exception) -> float:
    """Seconds that the server asks to wait."""
    headers = getattr(error, "headers", None) or {}
    text = str(headers.get("Retry-After", ""))
    return float(text) if text.isdigit() else 0.0
