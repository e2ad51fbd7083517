"""The cluster at hand answers as was recorded; COSMOS_RECORD=1 records it.

What the launcher's unit tests believe of Kubernetes rests on these recordings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..training.launch.exchanges import NAME, RECORDED, Call, calls, recordings, words
from .kubectl import NAMESPACE, kubectl


@pytest.fixture(scope="module")
def answer(account_config: Path) -> Callable[[Call], dict[str, Any]]:
    """Send a call; the status, and the server's words."""
    from kubernetes import client, config
    from kubernetes.client.exceptions import ApiException

    def api(path: str | None) -> Any:
        settings = client.Configuration()
        config.load_kube_config(path, client_configuration=settings)
        return client.ApiClient(settings)

    administrator = api(None)
    stranger = client.Configuration()
    stranger.host = administrator.configuration.host
    stranger.ssl_ca_cert = administrator.configuration.ssl_ca_cert
    stranger.api_key = {"authorization": "Bearer nobody"}
    apis = {
        "admin": administrator,
        "step": api(str(account_config)),
        "stranger": client.ApiClient(stranger),
    }

    def send(call: Call) -> dict[str, Any]:
        path, _, query = call.path.partition("?")
        patch = call.method == "PATCH"
        kind = "application/merge-patch+json" if patch else "application/json"
        pairs = [
            tuple(pair.split("=", 1)) for pair in query.replace("%3D", "\0").split("&") if pair
        ]
        try:
            response = apis[call.account].call_api(
                path.format(namespace=NAMESPACE),
                call.method,
                query_params=[(key, value.replace("\0", "=")) for key, value in pairs],
                header_params={"Accept": "application/json", "Content-Type": kind},
                body=call.body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=(20, 20),
            )
            status, text = response[1], response[0].data.decode()
        except ApiException as error:
            status, text = error.status, (error.body or b"").decode()
        return {"status": status, **words(text, NAMESPACE)}

    return send


def test_the_server_answers_as_recorded(
    applied: None, answer: Callable[[Call], dict[str, Any]]
) -> None:
    version = json.loads(kubectl("version", "-o", "json"))["serverVersion"]
    name = ".".join(version["gitVersion"].removeprefix("v").split(".")[:2])
    kubectl("delete", "pytorchjobs", NAME, "-n", NAMESPACE, "--ignore-not-found")
    answers = {call.what: answer(call) for call in calls()}
    if os.environ.get("COSMOS_RECORD"):
        RECORDED.mkdir(exist_ok=True)
        text = json.dumps(answers, indent=1) + "\n"
        (RECORDED / f"kubernetes-{name}.json").write_text(text)
    known = recordings()
    if name not in known:
        pytest.skip(f"there is no recording of Kubernetes {name}; COSMOS_RECORD=1 makes one")
    assert answers == known[name]
