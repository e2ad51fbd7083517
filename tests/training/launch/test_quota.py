"""Which quota is full, in whatever units the cluster and the request state their quantities."""

from __future__ import annotations

import pytest

from components.training.launch.explain import quota_reason
from components.training.launch.interface import LaunchRequest


def reason(resource: str, hard: str, used: str, **asked: str) -> str | None:
    request = LaunchRequest(name="job", image="image", command=("-m", "x"), **asked)  # type: ignore[arg-type]
    status = {"hard": {resource: hard}, "used": {resource: used}}
    return quota_reason([{"metadata": {"name": "team"}, "status": status}], request)


@pytest.mark.parametrize(
    ("resource", "hard", "fits", "full", "asked"),
    [
        ("limits.memory", "1Ti", "768Gi", "786433Mi", {"memory": "256Gi"}),
        ("memory", "1Ti", "824633720832", "824633720833", {"memory": "256Gi"}),
        ("requests.memory", "300G", "299500M", "299501M", {"memory": "500M"}),
        ("requests.cpu", "16", "15500m", "15501m", {"cpu": "500m"}),
        ("cpu", "1k", "984", "985", {"cpu": "16"}),
        # Kubernetes also writes exponents.
        ("requests.memory", "1e9", "5e8", "500000001", {"memory": "500M"}),
    ],
)
def test_a_quota_is_full_when_the_next_pod_would_pass_it(
    resource: str, hard: str, fits: str, full: str, asked: dict[str, str]
) -> None:
    assert reason(resource, hard, fits, **asked) is None
    sentence = reason(resource, hard, full, **asked)
    assert sentence is not None
    assert f"has {full} of {hard} {resource} in use" in sentence
