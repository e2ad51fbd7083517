"""A fake KFP that the environment points to, impatient connections, pipelines compiled once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pipelines.client import Connection, Server
from tests.servers.kfp import FakeKfp, fake_kfp


@pytest.fixture
def kfp_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeKfp]:
    """A fake KFP that the environment points to; in the end no request has broken the API."""
    monkeypatch.setattr("kfp.client.client.Client._LOCAL_KFP_CONTEXT", str(tmp_path / "c.json"))
    for name in ("KFP_ENDPOINT", "KFP_NAMESPACE", "KFP_EXISTING_TOKEN", "KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)
    # read from KUBECONFIG or the home folder when the library is imported
    nowhere = str(tmp_path / "no-kubeconfig")
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", nowhere)
    with fake_kfp() as fake:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", fake.url)
        yield fake
    assert fake.violations == []


@pytest.fixture(autouse=True, scope="session")
def compiled_once() -> Iterator[None]:
    """Compiling takes a second; the same pipeline with the same images compiles once."""
    from pipelines import compiling

    original = compiling.compile_pipeline
    known: dict[tuple[object, ...], str] = {}

    def compiled(
        pipeline: str,
        images: Mapping[str, str] | None = None,
        gpu_type: str | None = None,
        encode_pods: int = 1,
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
def server(kfp_server: FakeKfp) -> Server:
    """An impatient connection to it."""
    return Server(Connection(patience_s=5, pause_s=0.01, timeout_s=0.5))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands make their own connection; let it be as impatient."""
    original = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: original(min(seconds, 0.02)))
