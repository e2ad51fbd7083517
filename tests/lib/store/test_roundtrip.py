"""What is put is got: bytes, digests and descriptions."""

from __future__ import annotations

import hashlib
import random
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.lib.store import ObjectStore, StoreError

QUICK = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\"),
    min_size=1,
    max_size=20,
).filter(lambda name: name not in (".", ".."))


def test_bytes_come_back_with_digest_and_meta(store: ObjectStore, storage_root: str) -> None:
    uri = f"{storage_root}/a b/ü+%.bin"
    put = store.put_bytes(uri, b"hello", meta={"text": "ä  b\n", "n": [1, 2.5, None]})
    seen = store.stat(uri)
    assert seen is not None
    assert seen.sha256 == put.sha256 == hashlib.sha256(b"hello").hexdigest()
    assert (seen.bytes, seen.etag) == (put.bytes, put.etag) == (5, seen.etag)
    assert seen.meta == {"text": "ä  b\n", "n": [1, 2.5, None]}
    assert abs(seen.modified - put.modified) < 60
    assert store.get_bytes(uri) == b"hello"
    store.delete(uri)
    store.delete(uri)
    assert store.stat(uri) is None


@QUICK
@given(data=st.binary(max_size=2000), meta=st.dictionaries(st.text(max_size=8), JSON, max_size=4))
def test_any_bytes_and_meta(
    store: ObjectStore, storage_root: str, data: bytes, meta: dict[str, object]
) -> None:
    uri = f"{storage_root}/{uuid.uuid4().hex}"
    try:
        store.put_bytes(uri, data, meta=meta)
    except StoreError as error:
        assert "metadata holds" in str(error)
        return
    seen = store.stat(uri)
    assert seen is not None and seen.meta == meta
    assert store.get_bytes(uri) == data


@QUICK
@given(names=st.lists(NAMES, min_size=1, max_size=3))
def test_any_key(store: ObjectStore, storage_root: str, names: list[str]) -> None:
    root = f"{storage_root}/{uuid.uuid4().hex}"
    uri = "/".join([root, *names])
    store.put_bytes(uri, b"here")
    assert store.get_bytes(uri) == b"here"
    assert [info.uri for info in store.list(root)] == [uri]
    store.delete(uri)
    assert list(store.list(root)) == []


@pytest.mark.parametrize("parts", [0, 1, 2])
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_files_around_part_boundaries(
    store: ObjectStore, storage_root: str, tmp_path: Path, small_parts: int, parts: int, extra: int
) -> None:
    size = max(0, parts * small_parts + extra)
    data = random.Random(size).randbytes(size)
    source = tmp_path / "source"
    source.write_bytes(data)
    uri = f"{storage_root}/{size}"
    info = store.put_file(source, uri, meta={"part": parts})
    assert info.sha256 == hashlib.sha256(data).hexdigest()
    seen = store.stat(uri)
    assert seen is not None
    assert (seen.bytes, seen.sha256, seen.meta) == (size, info.sha256, {"part": parts})
    assert ("-" in seen.etag) == (size > small_parts), "multipart exactly above the limit"
    target = store.get_file(uri, tmp_path / "deep" / "target", sha256=info.sha256)
    assert target.read_bytes() == data
    assert store.get_bytes(uri) == data
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_large_bytes_go_in_parts(store: ObjectStore, storage_root: str, small_parts: int) -> None:
    data = random.Random(1).randbytes(2 * small_parts + 17)
    store.put_bytes(f"{storage_root}/big", data)
    assert store.get_bytes(f"{storage_root}/big") == data


def test_many_files_both_ways(store: ObjectStore, storage_root: str, tmp_path: Path) -> None:
    contents = {f"{i:03d}/{i}": random.Random(i).randbytes(i * 100) for i in range(60)}
    for name, data in contents.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        (tmp_path / "in" / name).write_bytes(data)
    finished = []
    infos = store.put_files(
        ((tmp_path / "in" / name, f"{storage_root}/{name}") for name in contents),
        done=lambda info: finished.append(info.uri),
    )
    assert [info.uri for info in infos] == [f"{storage_root}/{name}" for name in contents]
    assert sorted(finished) == sorted(info.uri for info in infos)
    paths = store.get_files(
        [(info.uri, tmp_path / "out" / str(i), info.sha256) for i, info in enumerate(infos)]
    )
    assert [path.read_bytes() for path in paths] == list(contents.values())


def test_listing_spans_pages_in_order(store: ObjectStore, storage_root: str) -> None:
    # A page holds 1000 keys.
    from concurrent.futures import ThreadPoolExecutor

    names = [f"{storage_root}/many/{i:05d}" for i in range(1100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda uri: store.put_bytes(uri, b"x"), names))
    listed = list(store.list(f"{storage_root}/many/"))
    assert [info.uri for info in listed] == names
    assert all(info.bytes == 1 and info.etag for info in listed)


def test_meta_that_does_not_fit_is_refused(store: ObjectStore, storage_root: str) -> None:
    with pytest.raises(StoreError, match=r" \d+ bytes .*object metadata"):
        store.put_bytes(f"{storage_root}/x", b"", meta={"text": "é" * 400})
    assert store.stat(f"{storage_root}/x") is None


def test_objects_of_others_have_no_digest(store: ObjectStore, storage_root: str) -> None:
    uri = f"{storage_root}/foreign"
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    import io

    store.session.client.put_object(
        bucket, key, io.BytesIO(b"theirs"), 6, metadata={"mtime": "1", "cosmos-meta": "x"}
    )
    info = store.stat(uri)
    assert info is not None and (info.sha256, info.meta) == (None, {})
    assert store.get_bytes(uri) == b"theirs"


def test_create_only_lets_exactly_one_writer_win(store: ObjectStore, storage_root: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from components.lib.store import ObjectExists

    uri = f"{storage_root}/version-1"

    def create(number: int) -> int | None:
        try:
            store.put_bytes(uri, str(number).encode(), if_absent=True)
        except ObjectExists:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(create, range(8)) if number is not None]
    assert [str(number).encode() for number in winners] == [store.get_bytes(uri)]


def test_a_store_works_in_forked_and_spawned_children(
    store: ObjectStore, storage_root: str
) -> None:
    import multiprocessing

    store.put_bytes(f"{storage_root}/x", b"parent")
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.apply(store.get_bytes, (f"{storage_root}/x",)) == b"parent"
    assert store.get_bytes(f"{storage_root}/x") == b"parent"
