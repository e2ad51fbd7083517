"""The fake server answers as real ones did: without that the other tests here prove little."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from .conftest import NAMESPACE
from .exchanges import Call, calls, recordings, words

TOKENS = {"admin": "good", "step": "good", "stranger": "nobody"}
# Which schema error is named, and how, is the validator's own; the launcher passes it on.
OWN_WORDS = ("Invalid", "Forbidden")


def send(url: str, call: Call) -> dict[str, Any]:
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


@pytest.mark.parametrize("version", recordings())
def test_the_fake_answers_as_the_real_server_did(kubernetes: Any, version: str) -> None:
    recorded = recordings()[version]
    assert [call.what for call in calls()] == list(recorded)
    for call in calls():
        answer, real = send(kubernetes.url, call), dict(recorded[call.what])
        if real.get("reason") in OWN_WORDS:
            answer.pop("message", None)
            real.pop("message", None)
        assert answer == real, call.what
