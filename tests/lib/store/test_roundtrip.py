"""What is put is got: bytes, digests and descriptions."""

from __future__ import annotations

import hashlib

from components.lib.store import ObjectStore


def test_bytes_come_back_with_digest_and_meta(store: ObjectStore, storage_root: str) -> None:
    uri = f"{storage_root}/a b/ü+%.bin"
    put = store.put_bytes(uri, b"hello", meta={"text": "ä  b\n", "n": [1, 2.5, None]})
    seen = store.stat(uri)
    assert seen is not None
    assert seen.sha256 == put.sha256 == hashlib.sha256(b"hello").hexdigest()
    assert seen.meta == {"text": "ä  b\n", "n": [1, 2.5, None]}
    assert store.get_bytes(uri) == b"hello"
    assert [info.uri for info in store.list(storage_root + "/")] == [uri]
    store.delete(uri)
    assert store.stat(uri) is None
