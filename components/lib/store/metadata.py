"""What this project stores with each object: its sha256, its size and a small JSON value.

The size tells a whole object from one that a store kept although its sender died half-way: such
an object counts as having no digest, hence as not written by us.

All travel as S3 user metadata. Header values must be ASCII, and request signing folds runs of
spaces, so the JSON is written with every space and every non-ASCII character escaped. S3 allows
2 KB of user metadata; more belongs in an object of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from components.lib.store.errors import ObjectCorrupt, StoreError

SHA256_HEADER = "x-amz-meta-cosmos-sha256"
SIZE_HEADER = "x-amz-meta-cosmos-bytes"
META_HEADER = "x-amz-meta-cosmos-meta"
NONCE_HEADER = "x-amz-meta-cosmos-nonce"
MAX_META_BYTES = 1800
_HEX = re.compile(r"^[0-9a-f]{64}$")


def to_headers(uri: str, sha256: str, size: int, meta: Mapping[str, Any] | None) -> dict[str, str]:
    """Request headers that carry all this. Raises StoreError when meta is too large."""
    headers = {SHA256_HEADER: sha256, SIZE_HEADER: str(size)}
    if meta:
        text = json.dumps(dict(meta), separators=(",", ":"), sort_keys=True, allow_nan=False)
        text = text.replace(" ", "\\u0020")
        if len(text) > MAX_META_BYTES:
            raise StoreError(
                f"The description stored with {uri} takes {len(text)} bytes and object metadata "
                f"holds {MAX_META_BYTES}. Put it into a file of its own."
            )
        headers[META_HEADER] = text
    return headers


def from_headers(headers: Mapping[str, str], size: int) -> tuple[str | None, dict[str, Any]]:
    """(sha256, meta) of an object of ``size`` bytes; (None, {}) unless it is whole and ours."""
    digest = headers.get(SHA256_HEADER)
    if digest is None or not _HEX.match(digest) or headers.get(SIZE_HEADER) != str(size):
        return None, {}
    try:
        meta = json.loads(headers.get(META_HEADER) or "{}")
    except json.JSONDecodeError:
        return None, {}
    return digest, meta if isinstance(meta, dict) else {}


def require_whole(uri: str, headers: Mapping[str, str], size: int) -> None:
    """Raise ObjectCorrupt when the object has not the size that was stored with it."""
    expected = headers.get(SIZE_HEADER)
    if expected is not None and expected != str(size):
        raise ObjectCorrupt(
            f"{uri} is corrupt: it holds {size} bytes and should hold {expected}. Delete the "
            "object and rerun the stage that wrote it."
        )
