"""`open_read` behaves like a local file opened for reading."""

from __future__ import annotations

import io
import random
import threading
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.lib.store import ObjectMissing, ObjectStore, StoreError
from components.lib.store import reader as reader_module
from tests.servers.faulty_proxy import FaultyProxy

SIZE = 10_000
DATA = random.Random(5).randbytes(SIZE)
STEPS = st.lists(
    st.tuples(st.just("read"), st.integers(-1, 5000))
    | st.tuples(st.just("seek"), st.integers(0, SIZE + 500)),
    max_size=12,
)


@pytest.fixture
def tiny_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "BLOCK", 1024)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS)
def test_any_sequence_of_reads_and_seeks(
    store: ObjectStore, storage_root: str, tiny_blocks: None, steps: list[tuple[str, int]]
) -> None:
    uri = f"{storage_root}/x"
    if store.stat(uri) is None:
        store.put_bytes(uri, DATA)
    oracle = io.BytesIO(DATA)
    with store.open_read(uri) as handle:
        for step, value in steps:
            assert getattr(handle, step)(value) == getattr(oracle, step)(value)
            assert handle.tell() == oracle.tell()


def test_seeks_relative_to_position_and_end(store: ObjectStore, storage_root: str) -> None:
    store.put_bytes(f"{storage_root}/x", b"0123456789")
    with store.open_read(f"{storage_root}/x") as handle:
        assert handle.seekable() and handle.readable() and not handle.writable()
        handle.seek(-3, io.SEEK_END)
        assert handle.read(1) == b"7"
        handle.seek(1, io.SEEK_CUR)
        assert handle.read() == b"9"
        assert handle.read() == b""


def test_an_empty_object(store: ObjectStore, storage_root: str) -> None:
    store.put_bytes(f"{storage_root}/x", b"")
    with store.open_read(f"{storage_root}/x") as handle:
        assert handle.read() == b""


def test_pyav_decodes_the_same_frames(
    store: ObjectStore, storage_root: str, clips: dict[str, Path]
) -> None:
    import av

    store.put_file(clips["bikes"], f"{storage_root}/a clip.mp4")

    def count(source: str | BinaryIO) -> list[int]:
        with av.open(source) as container:
            container.seek(container.duration // 2 or 0)
            return [frame.pts for frame in container.decode(video=0)]

    with store.open_read(f"{storage_root}/a clip.mp4") as handle:
        assert count(handle) == count(str(clips["bikes"]))


def test_an_object_replaced_while_open_is_an_error_and_not_a_mixture(
    store: ObjectStore, storage_root: str, tiny_blocks: None
) -> None:
    uri = f"{storage_root}/x"
    store.put_bytes(uri, DATA * 40)
    with store.open_read(uri) as handle:
        handle.read(10)
        store.put_bytes(uri, bytes(reversed(DATA)) * 40)
        handle.seek(SIZE * 39)
        with pytest.raises(StoreError, match="was replaced by another writer"):
            handle.read(10)


def test_a_missing_object(store: ObjectStore, storage_root: str) -> None:
    with pytest.raises(ObjectMissing, match=f"{storage_root}/none does not exist"):
        store.open_read(f"{storage_root}/none")


def test_memory_and_requests_stay_bounded(
    proxy: FaultyProxy, faulty: ObjectStore, storage_root: str, tiny_blocks: None
) -> None:
    uri = f"{storage_root}/x"
    faulty.put_bytes(uri, DATA * 30)
    proxy.requests.clear()
    with faulty.open_read(uri) as handle:
        assert handle.read() == DATA * 30
        raw = cast(io.BufferedReader, handle).raw
        assert isinstance(raw, reader_module.ObjectReader)
        assert len(raw.blocks) <= reader_module.KEEP
    blocks = -(-SIZE * 30 // 1024)
    assert len(proxy.requests) <= blocks + 1, "each block once, and one look at the object"
    assert threading.active_count() < 60
