"""A hub on loopback that answers as huggingface.co does for models, and misbehaves on request.

It reproduces what a download meets there:

- the listing of a commit with sizes, git ids, and the sha256 of files in LFS;
- small files answered directly, with their git id as ETag; files in LFS by a redirect to a
  content network under another host name, with X-Linked-Etag and X-Linked-Size, where a token
  must not follow;
- X-Repo-Commit with every file, and ranges of a file as 206;
- refusals by status and X-Error-Code: GatedRepo (401 for strangers, 403 for accounts without
  access), RepoNotFound (401 for strangers too, who do not learn what there is), RevisionNotFound
  and EntryNotFound.

`Faults` are troubles of the content network. Nothing of it is a recording: `huggingface_hub`
itself, which `tests.servers.test_hub` lets download from it, is the oracle.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from tests.servers.loopback import Json, QuietHandler, serving

LFS_SUFFIXES = (".pt", ".jit", ".safetensors", ".bin")
BLOCK = 16384


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that runs; ``url`` says where."""
    hub = FakeHub()
    with serving(type("Handler", (HubHandler,), {"hub": hub})) as hub.url:
        yield hub


def git_id(data: bytes) -> str:
    """The id that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repo:
    """One repository: commits with their files, branches, and who may read it."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Put a commit with these files on a branch; returns its id."""
        text = repr(sorted((name, git_id(data)) for name, data in files.items()))
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha], self.refs[branch] = files, sha
        return sha


@dataclass
class Faults:
    """How the content network misbehaves."""

    cut_after: int = 0  # close each connection after this many bytes
    ignore_ranges: bool = False
    corrupt: bool = False
    busy: int = 0  # answer this many requests with 503
    expired: int = 0  # refuse this many requests as if their signature had run out
    seconds_per_block: float = 0.0


class FakeHub:
    """The repositories by name, and which tokens there are (True: they may read gated ones).

    ``requests`` are (method, path), ``served`` the bytes of file contents.
    """

    def __init__(self) -> None:
        self.url = ""
        self.repos: dict[str, Repo] = {}
        self.tokens = {"hf_good": True, "hf_no_access": False}
        self.faults = Faults()
        self.requests: list[tuple[str, str]] = []
        self.served = 0
        self.lock = threading.Lock()

    def repo(self, name: str, files: dict[str, bytes], *, gated: bool = False) -> str:
        """Add a repository with one commit on main; returns the commit."""
        self.repos[name] = Repo(gated=gated)
        return self.repos[name].commit(files)

    def folder(self, name: str, folder: Path, *, gated: bool = False) -> str:
        """Add a repository with the files of a folder."""
        return self.repo(name, {p.name: p.read_bytes() for p in folder.iterdir()}, gated=gated)

    def blob(self, digest: str) -> bytes:
        """A file by its sha256."""
        files = [f for r in self.repos.values() for c in r.commits.values() for f in c.values()]
        return next(data for data in files if hashlib.sha256(data).hexdigest() == digest)

    def take(self, counter: Literal["busy", "expired"]) -> bool:
        """Use up one of a counted fault."""
        with self.lock:
            left = int(getattr(self.faults, counter))
            setattr(self.faults, counter, max(left - 1, 0))
            return bool(left)

    def count(self, size: int) -> None:
        """Bytes of file contents that go out."""
        with self.lock:
            self.served += size

    def forget(self) -> None:
        """Begin to count again."""
        self.requests.clear()
        self.served = 0


class HubHandler(QuietHandler):
    """Answers from the state of its class's ``hub``."""

    hub: FakeHub

    def respond(self) -> None:
        """Any request."""
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        if path.startswith("/cdn/"):
            self.content(path.removeprefix("/cdn/"))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            if repo := self.allowed(match[1]):
                self.information(match[1], repo, match[2])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if repo := self.allowed(match[1]):
                self.resolve(repo, match[2], match[3])
        else:
            self.fail(404, "RepoNotFound")

    do_HEAD = do_GET = respond

    def allowed(self, name: str) -> Repo | None:
        """The repository, unless the request was refused."""
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            self.fail(401, "", "Invalid credentials in Authorization header")
            return None
        repo = self.hub.repos.get(name)
        if repo is None:
            # The real hub hides from strangers whether a repository exists.
            self.fail(404 if token else 401, "RepoNotFound", "Repository not found")
            return None
        if repo.gated and not self.hub.tokens.get(token):
            self.fail(403 if token else 401, "GatedRepo", f"Access to {name} is restricted")
            return None
        return repo

    def fail(self, status: int, code: str, message: str = "") -> None:
        told = {"X-Error-Code": code, "X-Error-Message": message}
        headers = {name: value for name, value in told.items() if value}
        self.send(status, b"", "text/plain", headers)

    def information(self, name: str, repo: Repo, revision: str) -> None:
        """The listing of a commit."""
        sha = repo.refs.get(revision, revision)
        if sha not in repo.commits:
            return self.fail(404, "RevisionNotFound")
        siblings = []
        for path, data in repo.commits[sha].items():
            entry: Json = {"rfilename": path, "size": len(data), "blobId": git_id(data)}
            if path.endswith(LFS_SUFFIXES):
                digest = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        self.send_json(200, {"id": name, "modelId": name, "sha": sha, "siblings": siblings})

    def resolve(self, repo: Repo, revision: str, path: str) -> None:
        """A file of a commit, or where it is."""
        sha = repo.refs.get(revision, revision)
        if sha not in repo.commits:
            return self.fail(404, "RevisionNotFound")
        if path not in repo.commits[sha]:
            return self.fail(404, "EntryNotFound")
        data = repo.commits[sha][path]
        if not path.endswith(LFS_SUFFIXES):
            return self.stream(data, {"ETag": f'"{git_id(data)}"', "X-Repo-Commit": sha})
        digest = hashlib.sha256(data).hexdigest()
        # Another host name, as the real content network has: the token must not follow.
        network = self.hub.url.replace("127.0.0.1", "localhost")
        headers = {
            "Location": f"{network}/cdn/{digest}",
            "X-Linked-Etag": f'"{digest}"',
            "X-Linked-Size": str(len(data)),
            "X-Repo-Commit": sha,
        }
        return self.send(302, b"", "text/plain", headers)

    def content(self, digest: str) -> None:
        """A file of the content network."""
        if self.headers.get("authorization"):
            self.fail(400, "", "a token reached the content network")
        elif self.hub.take("busy"):
            self.fail(503, "")
        elif self.hub.take("expired"):
            self.fail(403, "")
        else:
            self.stream(self.hub.blob(digest), {})

    def stream(self, data: bytes, headers: dict[str, str]) -> None:
        """A file or the range of it that was asked for, block by block."""
        faults = self.hub.faults
        if faults.corrupt and len(data) > 1000:
            data = data[:500] + bytes([data[500] ^ 1]) + data[501:]
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, stop = 0, len(data)
        if span and not faults.ignore_ranges:
            start, stop = int(span[1]), min(int(span[2] or len(data)) + 1, len(data))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        else:
            self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if self.command != "HEAD":
            self.send_blocks(data, start, stop)

    def send_blocks(self, data: bytes, start: int, stop: int) -> None:
        hub, faults, sent = self.hub, self.hub.faults, 0
        for position in range(start, stop, BLOCK):
            block = data[position : min(position + BLOCK, stop)]
            if faults.cut_after and sent + len(block) > faults.cut_after:
                self.close_connection = True
                self.connection.close()
                return
            time.sleep(faults.seconds_per_block)
            hub.count(len(block))  # before the client can have read it and look
            try:
                self.wfile.write(block)
            except OSError:
                hub.count(-len(block))
                return
            sent += len(block)
