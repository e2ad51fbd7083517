"""What this project stores with each object: its sha256 and a small JSON value.

Both travel as S3 user metadata. Header values must be ASCII, and request signing folds runs of
spaces, so the JSON is written with every space and every non-ASCII character escaped. S3 allows
2 KB of user metadata; more belongs in an object of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from components.lib.store.errors import StoreError

SHA256_HEADER = "x-amz-meta-cosmos-sha256"
META_HEADER = "x-amz-meta-cosmos-meta"
NONCE_HEADER = "x-amz-meta-cosmos-nonce"
MAX_META_BYTES = 1800
_HEX = re.compile(r"^[0-9a-f]{64}$")


def to_headers(uri: str, sha256: str, meta: Mapping[str, Any] | None) -> dict[str, str]:
    """Request headers that carry digest and meta. Raises StoreError when meta is too large."""
    headers = {SHA256_HEADER: sha256}
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


def from_headers(headers: Mapping[str, str]) -> tuple[str | None, dict[str, Any]]:
    """(sha256, meta) of a response; (None, {}) for objects written by others."""
    digest = headers.get(SHA256_HEADER)
    if digest is None or not _HEX.match(digest):
        return None, {}
    try:
        meta = json.loads(headers.get(META_HEADER) or "{}")
    except json.JSONDecodeError:
        return None, {}
    return digest, meta if isinstance(meta, dict) else {}
