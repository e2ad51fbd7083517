"""A store that fails on request, and small parts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from components.lib.store import ObjectStore
from components.lib.store.embedded import EmbeddedStore
from tests.servers.faulty_proxy import FaultyProxy, faulty_proxy


@pytest.fixture
def proxy(embedded_store: EmbeddedStore) -> Iterator[FaultyProxy]:
    """A proxy to the session's store."""
    with faulty_proxy(embedded_store.env["AWS_ENDPOINT_URL"]) as server:
        yield server


@pytest.fixture
def faulty(proxy: FaultyProxy, store: ObjectStore) -> Iterator[ObjectStore]:
    """A client that reaches the store through the proxy."""
    client = store.with_settings(endpoint=proxy.endpoint, patience_s=20.0)
    yield client
    client.close()


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    """Transfers split at 5 MiB (the smallest part S3 allows); returns that size."""
    from components.lib.store import transfer

    size = 5 << 20
    for name in ("SINGLE", "PART", "SPAN"):
        monkeypatch.setattr(transfer, name, size)
    return size
