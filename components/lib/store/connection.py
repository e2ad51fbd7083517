"""The HTTP side of the store: patience, signing with known digests, and settings.

Every request of the minio client goes through `PatientPool.urlopen`, which retries broken
connections, timeouts, 429 and 5xx with jittered exponential backoff until ``patience_s`` have
passed since the first failure of that request. A store that has never answered gets only
``first_contact_s``: a wrong address should be reported soon, an outage in the middle of a long
stage should be waited out. All our requests are safe to repeat (puts replace, deletes are
idempotent); the two that can misread their own repetition, conditional create and completing a
multipart upload, are settled by their callers.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import certifi
import urllib3
from minio.credentials.providers import IamAwsProvider
from urllib3.exceptions import HTTPError, SSLError

from components.lib.store.errors import StoreError
from components.lib.store.minio_private import DIGEST_HEADER, S3Client

RETRY_STATUS = frozenset({429, 500, 502, 503, 504})


def default_workers() -> int:
    """Two transfers per core we may use, from 4 to 16: more threads than that slow each other."""
    return max(4, min(16, 2 * len(os.sched_getaffinity(0))))


@dataclass(frozen=True)
class StoreSettings:
    """Where the store is and who we are. The secrets are kept out of ``repr``."""

    endpoint: str
    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    region: str = ""
    ca_file: str = ""
    workers: int = field(default_factory=default_workers)
    patience_s: float = 150.0
    first_contact_s: float = 8.0
    read_timeout_s: float = 60.0

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> StoreSettings:
        """Settings from the usual AWS variables. Raises StoreError naming what is missing."""
        region = env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or ""
        endpoint = env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL")
        if not endpoint:
            endpoint = f"https://s3.{region}.amazonaws.com" if region else ""
        if not endpoint:
            raise StoreError(
                "No object store is configured. Set AWS_ENDPOINT_URL (for AWS itself, AWS_REGION)."
            )
        key, secret = env.get("AWS_ACCESS_KEY_ID", ""), env.get("AWS_SECRET_ACCESS_KEY", "")
        role = any(
            env.get(name)
            for name in ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
        )
        if bool(key) != bool(secret) or not (key or role):
            missing = "AWS_SECRET_ACCESS_KEY" if key else "AWS_ACCESS_KEY_ID"
            raise StoreError(f"{missing} is not set, so {endpoint} cannot be used. Set it.")
        return cls(
            endpoint=endpoint.rstrip("/"),
            access_key=key,
            secret_key=secret,
            session_token=env.get("AWS_SESSION_TOKEN", ""),
            region=region,
            ca_file=env.get("SSL_CERT_FILE") or env.get("AWS_CA_BUNDLE") or "",
        )

    def environment(self) -> dict[str, str]:
        """The inverse of `from_env`: what a child needs to make the same store."""
        values = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
            "AWS_SESSION_TOKEN": self.session_token,
            "SSL_CERT_FILE": self.ca_file,
        }
        return {name: value for name, value in values.items() if value}


class PatientPool(urllib3.PoolManager):
    """A pool whose requests survive a store that fails now and then or goes away for a while."""

    def __init__(self, settings: StoreSettings, stop: threading.Event, **options: Any) -> None:
        super().__init__(**options)
        self.settings, self.stop = settings, stop
        self.contacted = False
        self.retried = 0

    def urlopen(self, method: str, url: str, redirect: bool = True, **options: Any) -> Any:
        """As in urllib3; returns the last answer when patience runs out on a bad status."""
        options.update(retries=False)
        first_failure = None
        attempt = 0
        while True:
            wait = 0.0
            try:
                response = super().urlopen(method, url, redirect=False, **options)
            except SSLError:
                raise
            except HTTPError as error:
                first_failure = first_failure or time.monotonic()
                if not self._keep_trying(first_failure):
                    raise error
            else:
                self.contacted = True
                if response.status not in RETRY_STATUS:
                    response.cosmos_attempts = attempt + 1
                    return response
                first_failure = first_failure or time.monotonic()
                if not self._keep_trying(first_failure):
                    return response
                wait = _retry_after(response.headers.get("Retry-After"))
                response.drain_conn()
            attempt += 1
            self.retried += 1
            backoff = min(5.0, 0.1 * 2 ** min(attempt, 10)) * random.uniform(0.5, 1.0)  # noqa: S311
            if self.stop.wait(max(wait, backoff)):
                raise HTTPError("the transfer was interrupted")

    def _keep_trying(self, first_failure: float) -> bool:
        limit = self.settings.patience_s if self.contacted else self.settings.first_contact_s
        return time.monotonic() - first_failure < limit and not self.stop.is_set()


def _retry_after(value: str | None) -> float:
    return min(float(value), 30.0) if value and value.isdigit() else 0.0


def signed_body(sha256: str) -> dict[str, str]:
    """Headers for a body with this digest: the store then checks what it received."""
    return {DIGEST_HEADER: sha256}


def connect(settings: StoreSettings, stop: threading.Event) -> tuple[S3Client, PatientPool]:
    """A client and its pool. Raises StoreError when the endpoint is not a URL."""
    parts = urlsplit(settings.endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/"):
        raise StoreError(
            f"AWS_ENDPOINT_URL is '{settings.endpoint}'. Write it as http://host:port or "
            "https://host."
        )
    ca_file = settings.ca_file or certifi.where()
    if parts.scheme == "https" and not Path(ca_file).is_file():
        raise StoreError(f"SSL_CERT_FILE names {ca_file}, which does not exist. Correct it.")
    pool = PatientPool(
        settings,
        stop,
        num_pools=4,
        maxsize=settings.workers * 2 + 4,
        timeout=urllib3.Timeout(connect=10, read=settings.read_timeout_s),
        cert_reqs="CERT_REQUIRED",
        ca_certs=ca_file,
    )
    aws = parts.netloc.endswith(".amazonaws.com")
    try:
        client = S3Client(
            parts.netloc,
            access_key=settings.access_key or None,
            secret_key=settings.secret_key or None,
            session_token=settings.session_token or None,
            secure=parts.scheme == "https",
            region=settings.region or (None if aws else "us-east-1"),
            credentials=None if settings.access_key else IamAwsProvider(),
            http_client=pool,
        )
    except ValueError as error:
        raise StoreError(
            f"AWS_ENDPOINT_URL is '{settings.endpoint}', which is not usable: {error}. Write it "
            "as http://host:port or https://host."
        ) from error
    return client, pool
