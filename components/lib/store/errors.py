"""Errors of object storage as sentences: what happened, to which object, what to do next.

A failed request reaches us as an S3 error code, an HTTP status or a broken connection. `explain`
turns each into one sentence that names the URI and the setting to look at, and never a secret.
"""

from __future__ import annotations

from xml.etree.ElementTree import ParseError

from minio.error import InvalidResponseError, S3Error, ServerError
from urllib3.exceptions import HTTPError, NameResolutionError, SSLError

from components.lib.contract import UserError
from components.lib.store.minio_private import status_of

RequestError = (S3Error, ServerError, InvalidResponseError, HTTPError, ParseError)
MISSING_KEY = frozenset({"NoSuchKey", "ResourceNotFound"})


class StoreError(UserError):
    """The store refused or failed; the message says which URI and what to do."""


class ObjectMissing(StoreError):
    """There is no such object."""


class ObjectExists(StoreError):
    """A create-only write found the object already there."""


class ObjectCorrupt(StoreError):
    """The bytes do not have the digest that was stored or asked for."""


def corrupt(uri: str, expected: str, got: str) -> ObjectCorrupt:
    """The error for a digest mismatch."""
    return ObjectCorrupt(
        f"{uri} is corrupt: expected sha256 {expected}, got {got}. Delete the object and rerun "
        "the stage that wrote it."
    )


def explain(error: Exception, uri: str, endpoint: str, access_key: str) -> StoreError:
    """One sentence for an exception that `RequestError` covers."""
    if isinstance(error, HTTPError):
        return StoreError(_connection(error, uri, endpoint))
    if isinstance(error, S3Error):
        return _refused(error.code or "unknown", error.message or "", uri, endpoint, access_key)
    status = status_of(error)
    if status is not None and (status == 429 or status >= 500):
        return StoreError(
            f"The object store {endpoint} keeps answering with HTTP status {status} (needed for "
            f"{uri}). Rerun when it is healthy again; finished work is kept."
        )
    return StoreError(
        f"{endpoint} did not answer like an S3 store for {uri} ({_first_line(str(error))}). "
        "Check that AWS_ENDPOINT_URL names an S3 endpoint."
    )


def _connection(error: HTTPError, uri: str, endpoint: str) -> str:
    if isinstance(error, NameResolutionError):
        return (
            f"The host name of the object store {endpoint} does not resolve (needed for {uri}). "
            "Check AWS_ENDPOINT_URL."
        )
    if isinstance(error, SSLError):
        return (
            f"The TLS certificate of {endpoint} was not accepted ({_first_line(str(error))}). "
            "Put the issuing authority's certificate file into SSL_CERT_FILE, or use http:// if "
            "the store speaks no TLS."
        )
    return (
        f"The object store {endpoint} cannot be reached (needed for {uri}: "
        f"{type(error).__name__}). Check AWS_ENDPOINT_URL and that the store is running."
    )


def _refused(code: str, message: str, uri: str, endpoint: str, key: str) -> StoreError:
    bucket = uri.removeprefix("s3://").partition("/")[0]
    sentences = {
        "NoSuchBucket": f"The bucket '{bucket}' does not exist at {endpoint} (needed for {uri}). "
        "Create it, or correct the URI.",
        "InvalidAccessKeyId": f"The store {endpoint} does not know the access key '{key}' (needed "
        f"for {uri}). Correct AWS_ACCESS_KEY_ID.",
        "SignatureDoesNotMatch": f"The store {endpoint} refused the secret of access key '{key}' "
        f"(needed for {uri}). Correct AWS_SECRET_ACCESS_KEY.",
        "AccessDenied": f"Access key '{key}' may not do this with {uri} at {endpoint}. Give it "
        "read and write permission on the bucket, or use another key.",
        "ExpiredToken": f"The session token for {endpoint} has expired (needed for {uri}). Renew "
        "the credentials in AWS_SESSION_TOKEN.",
        "InvalidToken": f"The store {endpoint} refused the session token (needed for {uri}). "
        "Correct or unset AWS_SESSION_TOKEN.",
        "RequestTimeTooSkewed": f"The clock of this machine and of {endpoint} differ too much "
        f"(needed for {uri}). Set the clock.",
        "AuthorizationHeaderMalformed": f"The store {endpoint} refused the region in the request "
        f"for {uri} ({message}). Set AWS_REGION to the bucket's region.",
        "PermanentRedirect": f"The bucket '{bucket}' lies in another region ({message}). Set "
        "AWS_REGION and AWS_ENDPOINT_URL for it.",
        "InvalidRange": f"{uri} became shorter while it was read. Rerun once nothing writes it.",
        "PreconditionFailed": f"{uri} was replaced by another writer during the operation. Rerun "
        "once nothing else writes it.",
    }
    if code in MISSING_KEY:
        return ObjectMissing(
            f"{uri} does not exist at {endpoint}. Check the URI, or rerun the stage that writes it."
        )
    text = sentences.get(code)
    if text is None:
        text = (
            f"The store {endpoint} failed on {uri} with {code} ({_first_line(message)}). Rerun; if "
            "it persists, look into the store's log."
        )
    return StoreError(text)


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no detail"])[0][:200]
