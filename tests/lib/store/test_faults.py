"""A store that fails now and then, or goes away for a while, loses nothing."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from components.lib.store import ObjectCorrupt, ObjectExists, ObjectStore, StoreError
from tests.servers.faulty_proxy import Fault, FaultyProxy

FAULTS: list[Fault] = ["status", "throttle", "reset", "deaf", "short"]


@pytest.mark.parametrize("kind", FAULTS)
def test_every_third_request_fails(
    kind: Fault,
    proxy: FaultyProxy,
    faulty: ObjectStore,
    store: ObjectStore,
    storage_root: str,
    tmp_path: Path,
    small_parts: int,
) -> None:
    """Harsher than every tenth, so that a few files already meet each kind of failure often."""
    proxy.fault = lambda number, method: kind if number % 3 == 0 else None
    contents = {
        f"{i}": random.Random(i).randbytes(size)
        for i, size in enumerate([0, 1, 1000, small_parts, 2 * small_parts + 5, 40_000, 7])
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    faulty.put_files((tmp_path / name, f"{storage_root}/{name}") for name in contents)
    for name, data in contents.items():
        assert store.get_bytes(f"{storage_root}/{name}") == data
    out = tmp_path / "out"
    faulty.get_files((f"{storage_root}/{name}", out / name, None) for name in contents)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == contents
    assert sorted(info.uri for info in faulty.list(storage_root + "/")) == sorted(
        f"{storage_root}/{name}" for name in contents
    )
    for name in contents:
        faulty.delete(f"{storage_root}/{name}")
    assert list(store.list(storage_root + "/")) == []


def test_every_tenth_request_fails_in_turn(
    proxy: FaultyProxy, faulty: ObjectStore, storage_root: str, tmp_path: Path
) -> None:
    proxy.fault = lambda number, method: (
        FAULTS[number // 10 % len(FAULTS)] if number % 10 == 0 else None
    )
    contents = [random.Random(i).randbytes(3000 + i) for i in range(80)]
    for i, data in enumerate(contents):
        (tmp_path / str(i)).write_bytes(data)
    faulty.put_files((tmp_path / str(i), f"{storage_root}/{i}") for i in range(80))
    got = faulty.get_files((f"{storage_root}/{i}", tmp_path / f"got{i}", None) for i in range(80))
    assert [path.read_bytes() for path in got] == contents
    assert len(proxy.requests) >= 176, "160 requests and one more for each that failed"


def test_an_outage_in_the_middle_is_waited_out(
    proxy: FaultyProxy, faulty: ObjectStore, storage_root: str, tmp_path: Path
) -> None:
    data = random.Random(0).randbytes(200_000)
    (tmp_path / "x").write_bytes(data)
    down = threading.Event()
    proxy.fault = lambda number, method: "reset" if down.is_set() else None
    faulty.put_file(tmp_path / "x", f"{storage_root}/before")
    down.set()
    threading.Timer(4.0, down.clear).start()
    started = time.monotonic()
    faulty.put_file(tmp_path / "x", f"{storage_root}/during")
    assert 3.0 < time.monotonic() - started < 15
    assert faulty.get_bytes(f"{storage_root}/during") == data


def test_an_outage_that_does_not_end_is_reported(
    proxy: FaultyProxy, store: ObjectStore, storage_root: str
) -> None:
    client = store.with_settings(endpoint=proxy.endpoint, patience_s=1.0)
    client.put_bytes(f"{storage_root}/x", b"x")
    proxy.fault = lambda number, method: "reset"
    with pytest.raises(StoreError, match="cannot be reached"):
        client.get_bytes(f"{storage_root}/x")
    proxy.fault = lambda number, method: "status"
    with pytest.raises(StoreError, match="status 503"):
        client.put_bytes(f"{storage_root}/x", b"x")
    client.close()


def test_a_store_that_never_answered_is_reported_soon(store: ObjectStore) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    client = store.with_settings(endpoint=f"http://127.0.0.1:{port}", first_contact_s=0.5)
    started = time.monotonic()
    with pytest.raises(StoreError, match=f"127.0.0.1:{port} cannot be reached"):
        client.stat("s3://cosmos/x")
    assert time.monotonic() - started < 5


def test_a_lost_answer_to_a_create_is_not_a_conflict(
    proxy: FaultyProxy, faulty: ObjectStore, storage_root: str
) -> None:
    lost = iter([True])
    proxy.fault = lambda number, method: "deaf" if method == "PUT" and next(lost, False) else None
    info = faulty.put_bytes(f"{storage_root}/once", b"mine", if_absent=True)
    assert info.bytes == 4
    assert sum(line.startswith("PUT") for line in proxy.requests) == 2
    with pytest.raises(ObjectExists, match="exists already"):
        faulty.put_bytes(f"{storage_root}/once", b"other", if_absent=True)
    assert faulty.get_bytes(f"{storage_root}/once") == b"mine"


def test_a_lost_answer_to_the_last_step_of_an_upload(
    proxy: FaultyProxy, faulty: ObjectStore, storage_root: str, tmp_path: Path, small_parts: int
) -> None:
    data = random.Random(3).randbytes(small_parts + 100)
    (tmp_path / "x").write_bytes(data)
    posts: Iterator[Fault] = iter([None, "deaf"])
    proxy.fault = lambda number, method: next(posts, None) if method == "POST" else None
    faulty.put_file(tmp_path / "x", f"{storage_root}/x")
    assert faulty.get_bytes(f"{storage_root}/x") == data


def test_bytes_damaged_on_the_way_are_never_accepted(
    proxy: FaultyProxy, faulty: ObjectStore, storage_root: str, tmp_path: Path
) -> None:
    uri = f"{storage_root}/x"
    faulty.put_bytes(uri, b"a" * 1000)
    proxy.fault = lambda number, method: "flip"
    with pytest.raises(ObjectCorrupt, match=f"{uri} is corrupt.*sha256 [0-9a-f]+"):
        faulty.get_bytes(uri)
    with pytest.raises(ObjectCorrupt):
        faulty.get_file(uri, tmp_path / "x")
    with pytest.raises(ObjectCorrupt), faulty.open_read(uri) as handle:
        handle.read()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("parts", [0, 2])
def test_bytes_damaged_on_the_way_up_are_sent_again(
    proxy: FaultyProxy,
    faulty: ObjectStore,
    store: ObjectStore,
    storage_root: str,
    small_parts: int,
    parts: int,
) -> None:
    """SeaweedFS ignores the sha256 that signs a request; this rests on the checksum headers."""
    first_time = lambda: proxy.requests.count(proxy.requests[-1]) == 1  # noqa: E731
    proxy.fault = lambda number, method: "damage" if method == "PUT" and first_time() else None
    data = random.Random(0).randbytes(parts * small_parts + 100)
    faulty.put_bytes(f"{storage_root}/x", data)
    assert sum(line.startswith("PUT") for line in proxy.requests) >= 2 * max(1, parts)
    assert store.get_bytes(f"{storage_root}/x") == data


@pytest.mark.parametrize("sent", [0, 1000, 99_999])
def test_a_sender_that_dies_in_the_middle_leaves_no_object_that_looks_whole(
    store: ObjectStore, storage_root: str, sent: int
) -> None:
    uri = f"{storage_root}/x"
    body = b"x" * 100_000
    half_put(store, uri, body, sent)
    time.sleep(0.5)
    info = store.stat(uri)
    assert info is None or info.sha256 is None
    store.put_bytes(uri, body)
    assert store.get_bytes(uri) == body


def half_put(store: ObjectStore, uri: str, body: bytes, sent: int) -> None:
    """Our own put request, of which only the first ``sent`` bytes of the body go out."""

    class Captured(Exception):
        pass

    request: dict[str, Any] = {}

    def capture(method: str, url: str, headers: Mapping[str, str], **options: object) -> None:
        request.update(url=urlsplit(url), headers=headers)
        raise Captured

    client = store.with_settings()
    # a trap in place of the network, on purpose without urlopen's signature
    client.session.pool.urlopen = capture  # type: ignore[method-assign, assignment]
    with pytest.raises(Captured):
        client.put_bytes(uri, body)
    lines = [f"PUT {request['url'].path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in request["headers"].items()]
    with socket.create_connection((request["url"].hostname, request["url"].port)) as raw:
        raw.sendall("\r\n".join([*lines, "", ""]).encode() + body[:sent])
        time.sleep(0.1)
