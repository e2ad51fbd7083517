"""The fake Kubernetes answers as real ones did: without that the tests on it prove little."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.servers.kubernetes import NAMESPACE, FakeKubernetes, fake_kubernetes
from tests.training.launch.exchanges import Call, calls, recordings, words

TOKENS = {"admin": "good", "step": "good", "stranger": "nobody"}


@pytest.fixture
def kubernetes() -> Iterator[FakeKubernetes]:
    """A server without objects."""
    with fake_kubernetes() as fake:
        yield fake


def send(url: str, call: Call) -> dict[str, Any]:
    """The status of an answer and what it says, as the recordings hold it."""
    request = urllib.request.Request(
        url + call.path.format(namespace=NAMESPACE),
        data=json.dumps(call.body).encode() if call.body is not None else None,
        headers={"Authorization": f"Bearer {TOKENS[call.account]}"},
        method=call.method,
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            status, text = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    return {"status": status, **words(text, NAMESPACE)}


def comparable(answer: dict[str, Any]) -> dict[str, Any]:
    """Which schema error is named, and how, is the validator's own; the launcher passes it on."""
    if answer.get("reason") != "Invalid":
        return answer
    object_and_verdict, colon, _ = answer["message"].partition(" is invalid: ")
    return {**answer, "message": object_and_verdict + colon}


@pytest.mark.parametrize("version", recordings())
def test_the_fake_answers_as_the_real_server_did(kubernetes: FakeKubernetes, version: str) -> None:
    recorded = recordings()[version]
    assert [call.what for call in calls()] == list(recorded)
    for call in calls():
        answer = comparable(send(kubernetes.url, call))
        assert answer == comparable(recorded[call.what]), call.what


def test_the_comparison_finds_a_difference(kubernetes: FakeKubernetes) -> None:
    """An oracle that cannot fail proves nothing."""
    recorded = recordings()["1.20"]
    call = next(call for call in calls() if call.what == "create again")
    assert comparable(send(kubernetes.url, call)) != comparable(recorded["create again"])
    assert send(kubernetes.url, call) == recorded["create again"]
