"""What is used of kfp and kfp-server-api beyond their public names: one page to read on an upgrade.

Written against kfp 2.17 and kfp-server-api 2.17. Each function says why it is needed and what to
look at; `tests/test_foreign_private.py` keeps such uses in files of this kind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


def host_of(client: Any) -> str:
    """The address that a client talks to.

    Why: kfp finds it in four places (argument, environment, cluster, KUBECONFIG) and does not tell.
    On an upgrade: does `Client.__init__` still keep `_existing_config`, with `host`?
    """
    return str(client._existing_config.host)


def page_root(client: Any) -> str:
    """Where the pages of the KFP UI begin.

    Why: behind a proxy it differs from the API's address, and kfp knows the rule.
    On an upgrade: does the client still print run links with `_get_url_prefix`?
    """
    return str(client._get_url_prefix())


def create_pipeline(client: Any, body: Any) -> Any:
    """Create a pipeline without a version.

    Why: `upload_pipeline` makes a version, too, whose name tells nothing of its content.
    On an upgrade: is there a public call by now? Else, is `_pipelines_api` still the generated
    service with `pipeline_service_create_pipeline`?
    """
    return client._pipelines_api.pipeline_service_create_pipeline(body)


def client_class() -> type[Any]:
    """`kfp.Client`, except that it asks for the server's health once.

    Why: the original tries for 25 s and logs tracebacks; repeating is `Server.call`'s work.
    On an upgrade: does `Client.__init__` still call `get_kfp_healthz`, and it `_healthz_api`?
    """
    import kfp

    class Client(kfp.Client):  # type: ignore[misc, unused-ignore]
        """As `kfp.Client`."""

        def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
            return self._healthz_api.healthz_service_get_healthz(_request_timeout=10)

    return Client


def limit_calls(client: Any, timeout_s: float) -> None:
    """Give every call of a client a timeout, and every error a body.

    Why: by itself the client waits for ever on a dead connection; and it decodes the body of an
    error even where there is none.
    On an upgrade: do all services of a client still share the `api_client` of `_run_api`, and does
    `request` still take `_request_timeout`? As a pair: a float alone is ignored.
    """
    from kfp_server_api.exceptions import ApiException

    shared = client._run_api.api_client
    original = shared.request

    def request(*arguments: Any, **options: Any) -> Any:
        options["_request_timeout"] = options.get("_request_timeout") or (timeout_s, timeout_s)
        try:
            return original(*arguments, **options)
        except ApiException as error:
            error.body = error.body or b""
            raise

    shared.request = request


@contextlib.contextmanager
def values_as_they_are() -> Iterator[None]:
    """Within, local runs leave the values of a task's command alone.

    Why: kfp.local writes this interpreter's path for every 'python3' of a task's command, and would
    do so in the paths of videos, too. The values begin with --executor_input.
    On an upgrade: is `subprocess_task_handler.replace_python_executable` still what does it, and
    is the order of the command the same?
    """
    from kfp.local import subprocess_task_handler as handler

    replace = handler.replace_python_executable

    def replace_before_values(command: list[str], executable: str) -> list[str]:
        values = command.index("--executor_input")
        return [*replace(command[:values], executable), *command[values:]]

    handler.replace_python_executable = replace_before_values
    try:
        yield
    finally:
        handler.replace_python_executable = replace
