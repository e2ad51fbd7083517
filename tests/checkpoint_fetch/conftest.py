"""A small hub on loopback that answers as huggingface.co does, and misbehaves on request."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from components.lib.cosmos.formats.tiny import write_tiny

LFS_SUFFIXES = (".pt", ".jit", ".safetensors", ".bin")


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repo:
    """One repository: commits with their files, branches, and who may read it."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
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
    """The server. ``requests`` are (method, path), ``served`` the bytes of file contents."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.tokens = {"hf_good": True, "hf_no_access": False}
        self.faults = Faults()
        self.requests: list[tuple[str, str]] = []
        self.served = 0
        self.lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def repo(self, name: str, files: dict[str, bytes], *, gated: bool = False) -> str:
        """Add a repository with one commit on main; returns the commit."""
        self.repos[name] = Repo(gated=gated)
        return self.repos[name].commit(files)

    def folder(self, name: str, folder: Path, **more: bool) -> str:
        return self.repo(name, {p.name: p.read_bytes() for p in folder.iterdir()}, **more)

    def take(self, counter: str) -> bool:
        """Use up one of a counted fault."""
        with self.lock:
            left = getattr(self.faults, counter)
            setattr(self.faults, counter, max(left - 1, 0))
            return bool(left)

    def forget(self) -> None:
        self.requests.clear()
        self.served = 0

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(head=True)

    def do_GET(self) -> None:
        self.answer(head=False)

    def answer(self, *, head: bool) -> None:
        hub, path = self.server_hub, unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path))
        if path.startswith("/cdn/"):
            return self.content(path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            repo = self.allowed(match[1])
            return self.information(match[1], repo, match[2]) if repo else None
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo = self.allowed(match[1])
            return self.resolve(repo, match[2], match[3], head=head) if repo else None
        return self.fail(404, "RepoNotFound")

    def allowed(self, name: str) -> Repo | None:
        hub = self.server_hub
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in hub.tokens:
            self.fail(401, "", "Invalid credentials in Authorization header")
            return None
        repo = hub.repos.get(name)
        if repo is None:
            # The real hub hides from strangers whether a repository exists.
            self.fail(404 if token else 401, "RepoNotFound", "Repository not found")
            return None
        if repo.gated and not hub.tokens.get(token):
            self.fail(403 if token else 401, "GatedRepo", f"Access to {name} is restricted")
            return None
        return repo

    def fail(self, status: int, code: str, message: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if message:
            self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def information(self, name: str, repo: Repo, revision: str) -> None:
        sha = repo.refs.get(revision, revision)
        if sha not in repo.commits:
            return self.fail(404, "RevisionNotFound")
        siblings = []
        for path, data in repo.commits[sha].items():
            entry: dict[str, object] = {
                "rfilename": path,
                "size": len(data),
                "blobId": git_id(data),
            }
            if path.endswith(LFS_SUFFIXES):
                digest = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        body = json.dumps({"id": name, "modelId": name, "sha": sha, "siblings": siblings}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def resolve(self, repo: Repo, revision: str, path: str, *, head: bool) -> None:
        sha = repo.refs.get(revision, revision)
        if sha not in repo.commits:
            return self.fail(404, "RevisionNotFound")
        if path not in repo.commits[sha]:
            return self.fail(404, "EntryNotFound")
        data = repo.commits[sha][path]
        if not path.endswith(LFS_SUFFIXES):
            return self.body(data, {"ETag": f'"{git_id(data)}"', "X-Repo-Commit": sha}, head=head)
        digest = hashlib.sha256(data).hexdigest()
        self.send_response(302)
        # Another host name, as the real content network has: the token must not follow.
        place = f"http://localhost:{self.server_hub.port}/cdn/{digest}"
        self.send_header("Location", place)
        self.send_header("X-Linked-Etag", f'"{digest}"')
        self.send_header("X-Linked-Size", str(len(data)))
        self.send_header("X-Repo-Commit", sha)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def content(self, path: str) -> None:
        hub = self.server_hub
        if self.headers.get("authorization"):
            return self.fail(400, "", "a token reached the content network")
        if hub.take("busy"):
            return self.fail(503, "")
        if hub.take("expired"):
            return self.fail(403, "")
        every = [
            data
            for repo in hub.repos.values()
            for c in repo.commits.values()
            for data in c.values()
        ]
        data = next(d for d in every if hashlib.sha256(d).hexdigest() == path.removeprefix("/cdn/"))
        self.body(data, {}, head=self.command == "HEAD")

    def body(self, data: bytes, headers: dict[str, str], *, head: bool) -> None:
        hub, faults = self.server_hub, self.server_hub.faults
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
        if head:
            return
        sent = 0
        for position in range(start, stop, 16384):
            block = data[position : min(position + 16384, stop)]
            if faults.cut_after and sent + len(block) > faults.cut_after:
                self.close_connection = True
                self.connection.close()
                return
            time.sleep(faults.seconds_per_block)
            try:
                self.wfile.write(block)
            except OSError:
                return
            sent += len(block)
            with hub.lock:
                hub.served += len(block)


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    server = FakeHub()
    yield server
    server.close()


@pytest.fixture
def hub_env(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of this process points at the fake hub, with an empty cache and no token."""
    values = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf-home")}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return values


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny set of checkpoints for the session."""
    return write_tiny(tmp_path_factory.mktemp("tiny"))
