"""Names of objects: ``s3://bucket/key``.

Keys with ``.`` or ``..`` segments are refused: URL libraries fold them away before the request is
signed, so a store would see another key than the one that was asked for.
"""

from __future__ import annotations

import re

from components.lib.store.errors import StoreError

_BUCKET = re.compile(r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")
MAX_KEY_BYTES = 1024


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key (possibly empty) of an ``s3://bucket/key`` URI. Raises StoreError."""
    if not uri.startswith("s3://"):
        raise StoreError(f"'{uri}' is not an object URI. Write it as s3://bucket/key.")
    bucket, _, key = uri[len("s3://") :].partition("/")
    if not _BUCKET.match(bucket) or ".." in bucket:
        raise StoreError(
            f"'{uri}' names the bucket '{bucket}', which is not a valid bucket name. Use 3 to 63 "
            "lower-case letters, digits, dots and hyphens."
        )
    if len(key.encode()) > MAX_KEY_BYTES:
        raise StoreError(f"The key in '{uri}' is longer than {MAX_KEY_BYTES} bytes. Shorten it.")
    if any(part in (".", "..") for part in key.split("/")):
        raise StoreError(f"'{uri}' has a '.' or '..' in its key. Write the key without them.")
    return bucket, key


def object_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of a URI that must name one object. Raises StoreError."""
    bucket, key = split_uri(uri)
    if not key or key.endswith("/"):
        raise StoreError(f"'{uri}' names no object. Write it as s3://bucket/key.")
    return bucket, key


def writable_uri(uri: str) -> tuple[str, str]:
    """As `object_uri`, for an object to be written: refuses keys that some stores fold together."""
    bucket, key = object_uri(uri)
    if "//" in f"/{key}" or "\\" in key:
        raise StoreError(
            f"'{uri}' has an empty segment or a backslash in its key, which some stores fold into "
            "another key. Write the key without them."
        )
    return bucket, key
