"""What is used of the minio client beyond its public names. Written against minio 7.2.

Its public calls are whole transfers of files; this project needs single requests, so that it can
resume, retry and check each by itself. On an upgrade look at `minio/api.py`: whether the methods
below still take what they are given here. `tests/test_foreign_private.py` keeps such uses in files
of this kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minio import Minio
from minio import time as minio_time
from minio.datatypes import Part

DIGEST_HEADER = "x-amz-content-sha256"


class S3Client(Minio):
    """The minio client with its single requests, which does not hash a body of known sha256."""

    def request(self, method: str, bucket: str, key: str | None = None, **options: Any) -> Any:
        """One signed request; raises the client's own errors."""
        return self._execute(method, bucket, key, **options)

    def start_upload(self, bucket: str, key: str, headers: Mapping[str, str]) -> str:
        """Begin a multipart upload; returns its id."""
        return str(self._create_multipart_upload(bucket, key, dict(headers)))

    def complete_upload(self, bucket: str, key: str, upload: str, parts: Sequence[Part]) -> None:
        """Join the parts into the object."""
        self._complete_multipart_upload(bucket, key, upload, list(parts))

    def abort_upload(self, bucket: str, key: str, upload: str) -> None:
        """Forget a multipart upload."""
        self._abort_multipart_upload(bucket, key, upload)

    def unfinished_uploads(self, bucket: str) -> list[tuple[str, str]]:
        """Key and id of the multipart uploads that were neither completed nor aborted."""
        uploads = self._list_multipart_uploads(bucket).uploads
        return [(str(upload.object_name), str(upload.upload_id)) for upload in uploads]

    def _build_headers(
        self, host: str, headers: Any = None, body: Any = None, creds: Any = None
    ) -> Any:
        """As the client's, except that a body whose sha256 is in the headers is not hashed again.

        On an upgrade: are these still the headers that the original makes, and is their pair with
        the time what it returns?
        """
        digest = (headers or {}).get(DIGEST_HEADER)
        if digest is None or creds is None or body is None:
            return super()._build_headers(host, headers, body, creds)
        now = minio_time.utcnow()
        built = {
            **headers,
            "Host": host,
            "User-Agent": self._user_agent,
            "Content-Length": str(len(body)),
            "x-amz-date": minio_time.to_amz_date(now),
        }
        if creds.session_token:
            built["X-Amz-Security-Token"] = creds.session_token
        return built, now


def status_of(error: Exception) -> int | None:
    """HTTP status of a `ServerError` or an `InvalidResponseError`, which keeps it to itself."""
    status = getattr(error, "_status_code", getattr(error, "_code", None))
    return None if status is None else int(status)
