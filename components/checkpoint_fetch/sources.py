"""Where a checkpoint comes from: a Hugging Face repository, a folder, or an object-store prefix.

Every source is first reduced to a listing of files with digests. The listing of the needed files
decides the stage's content address, so a branch that has moved or a file that has changed is
fetched again and anything else is found.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from components.lib.contract import Frozen, UserError
from components.lib.manifest import file_sha256
from components.lib.store import ObjectStore

Kind = Literal["hf", "file", "s3"]
_REPO = re.compile(r"^[\w.-]{1,96}/[\w.-]{1,96}$")
_FULL_REVISION = re.compile(r"^[0-9a-f]{40}$")


class Location(Frozen):
    """A parsed ``source``. ``place`` is owner/name, a path, or an s3:// prefix ending in /."""

    kind: Kind
    place: str
    revision: str = ""

    @property
    def pinned(self) -> bool:
        """Whether the revision is a full commit id."""
        return bool(_FULL_REVISION.match(self.revision))

    @property
    def text(self) -> str:
        """The source as a user writes it."""
        if self.kind == "hf":
            return f"hf://{self.place}@{self.revision}"
        return f"file://{self.place}" if self.kind == "file" else self.place


class SourceFile(Frozen):
    """One file of a source. ``digest`` is ``sha256:…``, ``git:…`` (git's blob id) or ``etag:…``."""

    path: str
    bytes: int
    digest: str


def parse_source(source: str) -> Location:
    """Raises UserError for anything but the three forms."""
    if source.startswith("hf://"):
        name, _, revision = source[len("hf://") :].partition("@")
        if name.startswith("datasets/"):
            raise UserError(f"{source} is a data set; a checkpoint is a model, hf://owner/name.")
        if not _REPO.match(name):
            raise UserError(f"{source} is not of the form hf://owner/name or hf://owner/name@rev.")
        return Location(kind="hf", place=name, revision=revision or "main")
    if source.startswith("s3://"):
        return Location(kind="s3", place=source.rstrip("/") + "/")
    if source.startswith("file://"):
        path = unquote(source[len("file://") :])
    elif "://" in source or not source:
        raise UserError(
            f"'{source}' is no source of a checkpoint. Give hf://owner/name[@revision], "
            "s3://bucket/prefix, or file:///folder."
        )
    else:
        path = source
    return Location(kind="file", place=str(Path(path).expanduser().resolve()))


def list_folder(folder: Path) -> dict[str, Path]:
    """Relative path -> file, of a local folder. Raises UserError when it is none."""
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}. Give the folder that holds the checkpoint.")
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in files}


def list_prefix(prefix: str, store: ObjectStore) -> Iterator[SourceFile]:
    """Files below an object-store prefix."""
    for info in store.list(prefix):
        path = info.uri[len(prefix) :]
        if path and not path.endswith("/"):
            digest = f"sha256:{info.sha256}" if info.sha256 else f"etag:{info.etag}"
            yield SourceFile(path=path, bytes=info.bytes, digest=digest)


def git_blob_id(path: Path) -> str:
    """The id that git gives a file's content: sha1 over a header and the bytes."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(1024 * 1024):
            digest.update(block)
    return digest.hexdigest()


def matches(path: Path, file: SourceFile) -> bool:
    """Whether a local file has the size and digest of ``file`` (etags are not compared)."""
    if path.stat().st_size != file.bytes:
        return False
    kind, _, digest = file.digest.partition(":")
    if kind == "sha256":
        return file_sha256(path) == digest
    return kind != "git" or git_blob_id(path) == digest
