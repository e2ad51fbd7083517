"""What is used of urllib3 beyond its public names. Written against urllib3 2.7.

`tests/test_foreign_private.py` keeps such uses in files of this kind.
"""

from __future__ import annotations

from typing import Any


def read_into(response: Any, buffer: memoryview) -> int:
    """Fill the start of ``buffer`` from a streamed response's body; 0 at its end.

    Why: urllib3's own ``read`` copies each byte twice more, which halves the speed of a download.
    So this reads from the http.client response inside urllib3's. It does not decode: our requests
    ask for no compression.
    On an upgrade: is `_fp` of a response still the `http.client.HTTPResponse`? If
    `HTTPResponse.readinto` has become as fast by itself, this file can go.
    """
    return int(response._fp.readinto(buffer))
