"""What a user reads when the store cannot do what was asked."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from components.lib.contract import UserError
from components.lib.store import ObjectCorrupt, ObjectMissing, ObjectStore, StoreError
from components.lib.store import transfer as transfer_module
from components.lib.store.embedded import EmbeddedStore

SECRET = "never-show-this-secret"


def operations(client: ObjectStore, uri: str, path: Path) -> dict[str, object]:
    path.write_bytes(b"x")
    return {
        "stat": lambda: client.stat(uri),
        "get_bytes": lambda: client.get_bytes(uri),
        "get_file": lambda: client.get_file(uri, path.with_name("got")),
        "put_bytes": lambda: client.put_bytes(uri, b"x"),
        "put_file": lambda: client.put_file(path, uri),
        "create": lambda: client.put_bytes(uri, b"x", if_absent=True),
        "list": lambda: list(client.list(uri)),
        "delete": lambda: client.delete(uri),
        "open_read": lambda: client.open_read(uri),
        "ensure_bucket": lambda: client.ensure_bucket("cosmos"),
    }


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"secret_key": SECRET}, r"refused the secret of access key '\w+' .*AWS_SECRET_ACCESS_KEY"),
        ({"access_key": "NOBODY"}, r"does not know the access key 'NOBODY' .*AWS_ACCESS_KEY_ID"),
    ],
)
def test_wrong_credentials(
    store: ObjectStore,
    storage_root: str,
    tmp_path: Path,
    changes: dict[str, str],
    sentence: str,
) -> None:
    client = store.with_settings(**changes)
    for name, call in operations(client, f"{storage_root}/x", tmp_path / "x").items():
        with pytest.raises(StoreError, match=sentence) as caught:
            call()  # type: ignore[operator]
        assert SECRET not in str(caught.value), name
        assert store.settings.secret_key not in str(caught.value), name
        assert "\n" not in str(caught.value)
    client.close()


def test_missing_bucket(store: ObjectStore, tmp_path: Path) -> None:
    calls = operations(store, "s3://no-such-bucket/x", tmp_path / "x")
    del calls["ensure_bucket"], calls["delete"]
    for call in calls.values():
        with pytest.raises(StoreError, match="bucket 'no-such-bucket' does not exist at http"):
            call()  # type: ignore[operator]


def test_ensure_bucket_creates_once(store: ObjectStore) -> None:
    store.ensure_bucket("made-by-a-test")
    store.ensure_bucket("made-by-a-test")
    store.put_bytes("s3://made-by-a-test/x", b"x")
    assert [info.uri for info in store.list("s3://made-by-a-test")] == ["s3://made-by-a-test/x"]
    store.delete("s3://made-by-a-test/x")


def test_missing_object(store: ObjectStore, storage_root: str, tmp_path: Path) -> None:
    assert store.stat(f"{storage_root}/none") is None
    for call in (
        lambda: store.get_bytes(f"{storage_root}/none"),
        lambda: store.get_file(f"{storage_root}/none", tmp_path / "x"),
    ):
        with pytest.raises(ObjectMissing, match=f"{storage_root}/none does not exist at http"):
            call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("/tmp/x", "is not an object URI"),
        ("gs://bucket/x", "is not an object URI"),
        ("s3://UPPER/x", "not a valid bucket name"),
        ("s3://a/x", "not a valid bucket name"),
        ("s3://cosmos", "names no object"),
        ("s3://cosmos/folder/", "names no object"),
        ("s3://cosmos/a/../b", r"'\.\.' in its key"),
        ("s3://cosmos/a//b", "empty segment"),
        ("s3://cosmos/a\\b", "backslash"),
        ("s3://cosmos/" + "k" * 1025, "longer than 1024 bytes"),
    ],
)
def test_bad_uris(store: ObjectStore, uri: str, sentence: str) -> None:
    with pytest.raises(StoreError, match=sentence):
        store.put_bytes(uri, b"x")


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({}, "Set AWS_ENDPOINT_URL"),
        ({"AWS_ENDPOINT_URL": "http://x:1"}, "AWS_ACCESS_KEY_ID is not set"),
        (
            {"AWS_ENDPOINT_URL": "http://x:1", "AWS_ACCESS_KEY_ID": "k"},
            "AWS_SECRET_ACCESS_KEY is not set",
        ),
    ],
)
def test_missing_settings(env: dict[str, str], sentence: str) -> None:
    with pytest.raises(StoreError, match=sentence):
        ObjectStore.from_env(env)


@pytest.mark.parametrize("endpoint", ["localhost:9000", "http://h/path", "ftp://h", "http://"])
def test_bad_endpoints(store: ObjectStore, endpoint: str) -> None:
    with pytest.raises(StoreError, match="Write it as http://host:port"):
        store.with_settings(endpoint=endpoint).stat("s3://cosmos/x")


def test_tls_to_a_store_without_tls(store: ObjectStore) -> None:
    client = store.with_settings(endpoint=store.settings.endpoint.replace("http:", "https:"))
    with pytest.raises(StoreError, match=r"TLS .* use http:// if the store speaks no TLS"):
        client.stat("s3://cosmos/x")
    client.close()


def test_an_endpoint_that_is_no_s3_store(embedded_store: EmbeddedStore, store: ObjectStore) -> None:
    import http.server
    import threading

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<html>hello</html>"
            self.send_response(200 if "list-type" in self.path else 403)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Nothing."""

        do_PUT = do_GET

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = store.with_settings(endpoint=f"http://127.0.0.1:{server.server_address[1]}")
        with pytest.raises(StoreError, match="did not answer like an S3 store"):
            client.get_bytes("s3://cosmos/x")
        with pytest.raises(StoreError, match="did not answer like an S3 store"):
            client.put_bytes("s3://cosmos/x", b"x")
        with pytest.raises(StoreError, match="did not answer like an S3 store"):
            list(client.list("s3://cosmos/x"))
        client.close()
        server.shutdown()


def tamper(store: ObjectStore, uri: str, data: bytes) -> None:
    """Replace the bytes but keep the digest that was stored with them."""
    import io

    info = store.stat(uri)
    assert info is not None
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    store.session.client.put_object(
        bucket,
        key,
        io.BytesIO(data),
        len(data),
        metadata={"cosmos-sha256": str(info.sha256), "cosmos-bytes": str(len(data))},
    )


def test_a_tampered_object_is_never_returned(
    store: ObjectStore, storage_root: str, tmp_path: Path
) -> None:
    uri = f"{storage_root}/x"
    target = tmp_path / "x"
    target.write_bytes(b"what was here before")
    store.put_bytes(uri, b"good bytes")
    tamper(store, uri, b"evil bytes")
    for call in (
        lambda: store.get_bytes(uri),
        lambda: store.get_file(uri, target),
        lambda: store.get_files([(uri, target, None)]),
        lambda: store.open_read(uri).read(),
    ):
        with pytest.raises(ObjectCorrupt, match=f"{uri} is corrupt: expected .* Delete the object"):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert target.read_bytes() == b"what was here before"


def test_a_truncated_object_is_never_returned(
    store: ObjectStore, storage_root: str, tmp_path: Path
) -> None:
    import io

    bucket, _, key = f"{storage_root}/x".removeprefix("s3://").partition("/")
    for kept in (b"", b"half"):
        store.session.client.put_object(
            bucket,
            key,
            io.BytesIO(kept),
            len(kept),
            metadata={"cosmos-sha256": "0" * 64, "cosmos-bytes": "8"},
        )
        info = store.stat(f"{storage_root}/x")
        assert info is not None and info.sha256 is None, "a stage must not take it for finished"
        for call in operations(store, f"{storage_root}/x", tmp_path / "x").items():
            if call[0] in ("get_bytes", "get_file", "open_read"):
                with pytest.raises(
                    ObjectCorrupt, match=f"holds {len(kept)} bytes and should hold 8"
                ):
                    call[1]()  # type: ignore[operator]


def test_the_callers_digest_counts_too(
    store: ObjectStore, storage_root: str, tmp_path: Path
) -> None:
    uri = f"{storage_root}/x"
    store.put_bytes(uri, b"good bytes")
    with pytest.raises(ObjectCorrupt):
        store.get_bytes(uri, sha256="0" * 64)
    with pytest.raises(ObjectCorrupt):
        store.get_file(uri, tmp_path / "x", sha256="0" * 64)


def test_a_missing_local_file(store: ObjectStore, storage_root: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no file .*nothing to upload"):
        store.put_file(tmp_path / "nothing", f"{storage_root}/x")
    with pytest.raises(UserError, match="is not a file"):
        store.put_file(tmp_path, f"{storage_root}/x")


def test_a_target_that_cannot_be_written(
    store: ObjectStore, storage_root: str, tmp_path: Path
) -> None:
    store.put_bytes(f"{storage_root}/x", b"x")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be written"):
        store.get_file(f"{storage_root}/x", tmp_path / "file" / "x")


def test_a_full_disk(
    store: ObjectStore, storage_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    store.put_bytes(f"{storage_root}/x", b"x")
    monkeypatch.setattr(transfer_module.os, "pwrite", full)
    with pytest.raises(StoreError, match=r"The disk is full: .* needs 1 bytes"):
        store.get_file(f"{storage_root}/x", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_changes_during_its_upload(
    store: ObjectStore,
    storage_root: str,
    tmp_path: Path,
    small_parts: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "x"
    path.write_bytes(random.Random(0).randbytes(small_parts * 2))
    real = transfer_module.hash_source

    def slow_hash(source: transfer_module.UploadSource) -> str:
        digest = real(source)
        with path.open("r+b") as handle:
            handle.write(b"changed")
        return digest

    monkeypatch.setattr(transfer_module, "hash_source", slow_hash)
    with pytest.raises(StoreError, match="was changed during its upload"):
        store.put_file(path, f"{storage_root}/x")
    assert store.stat(f"{storage_root}/x") is None


def test_one_failure_in_many_stops_and_is_reported(
    store: ObjectStore, storage_root: str, tmp_path: Path
) -> None:
    store.put_bytes(f"{storage_root}/ok", b"x")
    items = [(f"{storage_root}/{'ok' if i else 'none'}", tmp_path / str(i), None) for i in range(9)]
    with pytest.raises(ObjectMissing, match=f"{storage_root}/none"):
        store.get_files(items)
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".part"]


def test_settings_do_not_print_the_secret(store: ObjectStore) -> None:
    assert store.settings.secret_key not in repr(store.settings)
