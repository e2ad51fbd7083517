"""A Hugging Face data set as a source, on a hub of our own that speaks its protocol."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from components.lib.manifest import load_manifest
from components.lib.store import ObjectStore
from components.lib.video.records import read_records

REPO, COMMIT = "nvidia/Cosmos-NeMo-Assets", "0123456789abcdef0123456789abcdef01234567"
PROGRAM = """
import sys
from components.lib.contract import UserError
from components.lib.progress import LineProgress
from components.lib.store import ObjectStore
from components.video_discovery.config import VideoDiscoveryConfig
from components.video_discovery.stage import run
config = VideoDiscoveryConfig(storage_root=sys.argv[1], source=sys.argv[2], workers=1)
try:
    print(run(config, ObjectStore.from_env(), LineProgress()).manifest_uri)
except UserError as error:
    sys.exit(f"sentence: {error}")
"""


class Hub(ThreadingHTTPServer):
    """Serves the files of one data set."""

    def __init__(self, files: dict[str, bytes], status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.status, self.downloads = files, status, 0


class Handler(BaseHTTPRequestHandler):
    """The four kinds of request that discovery makes."""

    server: Hub

    def log_message(self, *_: Any) -> None:
        """Silence."""

    def do_HEAD(self) -> None:
        self.respond(body=False)

    def do_GET(self) -> None:
        self.respond(body=True)

    def respond(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.server.status != 200:
            code = {401: "RepoNotFound", 403: "GatedRepo"}[self.server.status]
            self.send(b"{}", body, self.server.status, {"X-Error-Code": code})
        elif path.startswith(f"/api/datasets/{REPO}/tree/{COMMIT}"):
            listing = [self.describe(name) for name in self.server.files]
            self.send(json.dumps(listing).encode(), body)
        elif path.startswith(f"/api/datasets/{REPO}"):
            self.send(json.dumps({"id": REPO, "sha": COMMIT, "siblings": []}).encode(), body)
        elif path.startswith(f"/datasets/{REPO}/resolve/{COMMIT}/"):
            data = self.server.files.get(path.split(f"{COMMIT}/", 1)[1])
            if data is None:
                self.send(b"", body, 404, {"X-Error-Code": "EntryNotFound"})
                return
            self.server.downloads += body
            etag = hashlib.sha256(data).hexdigest()
            self.send(data, body, 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        else:
            self.send(b"", body, 404)

    def describe(self, name: str) -> dict[str, Any]:
        data = self.server.files[name]
        digest = hashlib.sha256(data).hexdigest()
        lfs = {"oid": digest, "size": len(data), "pointerSize": 130}
        return {"type": "file", "path": name, "size": len(data), "oid": digest[:40], "lfs": lfs}

    def send(
        self, data: bytes, body: bool, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def serve() -> Iterator[Callable[..., Hub]]:
    hubs: list[Hub] = []

    def start(files: dict[str, bytes], status: int = 200) -> Hub:
        hubs.append(Hub(files, status))
        threading.Thread(target=hubs[-1].serve_forever, daemon=True).start()
        return hubs[-1]

    yield start
    for hub in hubs:
        hub.shutdown()
        hub.server_close()


def discover(
    hub: Hub, source: str, storage_root: str, env: dict[str, str], cache: Path
) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in env.items() if not name.startswith("HF_")}
    own = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(cache)}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, storage_root, source],
        env={**kept, **own, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*", "no_proxy": "*"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_data_set_is_copied_once_into_the_store(
    serve: Callable[..., Hub], store: ObjectStore, storage_root: str, store_env: dict[str, str],
    clips: dict[str, Path], tmp_path: Path,
) -> None:  # fmt: skip
    video = clips["carphone"].read_bytes()
    files = {"README.md": b"#", "demo/a b.mp4": video, "demo/a b.txt": b"A phone.", "x.mp4": b"-"}
    hub = serve(files)
    source = f"hf://datasets/{REPO}"
    done = discover(hub, source, storage_root, store_env, tmp_path / "hf")
    assert done.returncode == 0, done.stderr
    manifest = load_manifest(done.stdout.strip(), store)
    (record,) = read_records(manifest, store)
    assert record.sha256 == hashlib.sha256(video).hexdigest()
    assert record.prompt == "A phone." and record.extra["source"] == "demo/a b.mp4"
    assert store.get_bytes(record.uri, sha256=record.sha256) == video
    fetched = hub.downloads
    again = discover(hub, source, storage_root, store_env, tmp_path / "empty")
    assert again.stdout == done.stdout
    assert hub.downloads - fetched <= 1, "only the sidecar is read again"
    assert hub.downloads > 0


@pytest.mark.parametrize(
    ("status", "sentence"), [(401, "no data set nvidia"), (403, "Accept its licence at")]
)
def test_a_refusal_says_what_to_do(
    serve: Callable[..., Hub], storage_root: str, store_env: dict[str, str], tmp_path: Path,
    status: int, sentence: str,
) -> None:  # fmt: skip
    hub = serve({}, status)
    done = discover(hub, f"hf://datasets/{REPO}", storage_root, store_env, tmp_path / "hf")
    assert done.returncode == 1
    assert sentence in done.stderr.splitlines()[-1] and REPO in done.stderr
    assert os.environ.get("HF_TOKEN", "none") not in done.stderr
