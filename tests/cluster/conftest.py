"""A real cluster (KUBECONFIG): our manifests, our training image, a store that pods can reach.

The store is the session's SeaweedFS on loopback; a small forwarder on the node's address lets pods
reach it. The launcher runs as a child process with the token of the ServiceAccount that steps
have, so everything it does is allowed by the Roles in manifests/base.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.lib.manifest import MANIFEST_NAME, FileEntry, Kind, Manifest
from components.lib.store import ObjectStore

from ..images.building import build
from ..manifests.kustomize import build as kustomize

ROOT = Path(__file__).parents[2]
NAMESPACE = "cosmos"
IMAGE = "local/cosmos-train:test"
# Runs a Python expression about `request` in a child: the launcher, as a step would run it.
LAUNCHER = """
import json, sys
from components.lib.contract import UserError
from components.lib.logs import configure_logging
from components.lib.progress import LineProgress
from components.training.launch import pytorchjob
from components.training.launch.interface import LaunchRequest
configure_logging()
try:
    pytorchjob.launch(LaunchRequest.model_validate_json(sys.argv[1]), LineProgress())
except UserError as error:
    print("USER ERROR", error, flush=True)
    sys.exit(1)
print("LAUNCHER DONE", flush=True)
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs a cluster."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            if "KUBECONFIG" not in os.environ:
                item.add_marker(pytest.mark.skip(reason="KUBECONFIG names no cluster"))


def find_kubectl() -> str:
    """The one on the PATH, else the one that a test cluster brings beside its KUBECONFIG."""
    beside = Path(os.environ["KUBECONFIG"]).parent.parent / "bin" / "kubectl"
    found = shutil.which("kubectl") or (str(beside) if beside.is_file() else None)
    if found is None:
        raise pytest.UsageError("The cluster tests need kubectl on the PATH.")
    return found


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    """Output of kubectl. Fails with its words."""
    done = subprocess.run(
        [find_kubectl(), *arguments], input=stdin, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def applied() -> Iterator[None]:
    """The manifests of the single-node overlay, without the store's pod, and a loose quota."""
    documents = [
        document
        for document in kustomize(ROOT / "manifests" / "overlays" / "single-node")
        if document["kind"] not in ("StatefulSet", "Service", "Job")
    ]
    for _ in range(2):  # a second time changes nothing
        kubectl("apply", "--validate=false", "-f", "-", stdin=yaml.safe_dump_all(documents))
    yield
    kubectl("delete", "pytorchjobs", "--all", "-n", NAMESPACE)


@pytest.fixture(scope="session")
def core() -> Any:
    """The administrator's API client."""
    from kubernetes import client, config

    config.load_kube_config()
    return client.CoreV1Api()


@pytest.fixture(scope="session")
def config_of(
    applied: None, core: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A KUBECONFIG with the token of a ServiceAccount in our namespace."""
    from kubernetes import client

    def make(account: str) -> Path:
        body = client.AuthenticationV1TokenRequest(
            spec=client.V1TokenRequestSpec(audiences=["https://kubernetes.default.svc"])
        )
        token = core.create_namespaced_service_account_token(account, NAMESPACE, body)
        given = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text())
        given["users"] = [{"name": account, "user": {"token": token.status.token}}]
        for context in given["contexts"]:
            context["context"].update(user=account, namespace=NAMESPACE)
        path = tmp_path_factory.mktemp("account") / "kubeconfig"
        path.write_text(yaml.safe_dump(given))
        return path

    return make


@pytest.fixture(scope="session")
def account_config(config_of: Callable[[str], Path]) -> Path:
    """A KUBECONFIG with the token of the steps' ServiceAccount."""
    return config_of("cosmos-pipeline")


@pytest.fixture(scope="session")
def node_store(embedded_store: Any, core: Any, applied: None) -> Iterator[str]:
    """Address under which pods reach the store; the Secret cosmos-s3 says so."""
    node = core.list_node().items[0]
    address = next(a.address for a in node.status.addresses if a.type == "InternalIP")
    port = int(embedded_store.env["AWS_ENDPOINT_URL"].rsplit(":", 1)[1])
    with forwarder(address, port) as outside:
        endpoint = f"http://{address}:{outside}"
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "cosmos-s3", "namespace": NAMESPACE},
            "stringData": {
                "endpoint": endpoint,
                "access-key": embedded_store.env["AWS_ACCESS_KEY_ID"],
                "secret-key": embedded_store.env["AWS_SECRET_ACCESS_KEY"],
                "region": "us-east-1",
            },
        }
        kubectl("apply", "-f", "-", stdin=yaml.safe_dump(secret))
        yield endpoint


class forwarder:
    """Context manager: connections to ``address`` are passed to a local port."""

    def __init__(self, address: str, port: int) -> None:
        self.port = port
        self.server = socket.create_server((address, 0))

    def __enter__(self) -> int:
        threading.Thread(target=self._accept, daemon=True).start()
        return int(self.server.getsockname()[1])

    def __exit__(self, *_exc: object) -> None:
        self.server.close()

    def _accept(self) -> None:
        while True:
            try:
                outside, _ = self.server.accept()
            except OSError:
                return
            inside = socket.create_connection(("127.0.0.1", self.port))
            for source, target in ((outside, inside), (inside, outside)):
                threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                end.close()


@pytest.fixture(scope="session")
def image() -> str:
    """Our training image: COSMOS_TEST_TRAIN_IMAGE, else built from this tree."""
    given = os.environ.get("COSMOS_TEST_TRAIN_IMAGE")
    if given:
        return given
    print(build("train", IMAGE))
    return IMAGE


class Launch:
    """A launcher in a child process, as a step runs it."""

    def __init__(self, config: Path, request: dict[str, Any], folder: Path) -> None:
        self.log = folder / f"launcher-{uuid.uuid4().hex[:8]}.log"
        env = {**os.environ, "KUBECONFIG": str(config), "PYTHONUNBUFFERED": "1"}
        with self.log.open("w") as stream:
            self.child = subprocess.Popen(
                [sys.executable, "-c", LAUNCHER, json.dumps(request)],
                env=env,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
            )

    @property
    def text(self) -> str:
        return self.log.read_text()

    def until(self, what: str, seconds: float = 150) -> None:
        """Wait until the log holds ``what``."""
        end = time.monotonic() + seconds
        while what not in self.text:
            assert self.child.poll() is None or what in self.text, self.text
            assert time.monotonic() < end, f"no '{what}' in\n{self.text}"
            time.sleep(0.2)

    def wait(self, seconds: float = 300) -> int:
        try:
            return self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the launcher still runs:\n{self.text}") from None

    def kill(self, how: signal.Signals) -> None:
        self.child.send_signal(how)


@pytest.fixture
def launch(account_config: Path, tmp_path: Path, image: str) -> Iterator[Callable[..., Launch]]:
    """Start a launcher; keyword arguments are fields of its LaunchRequest."""
    started: list[Launch] = []

    def start(**fields: Any) -> Launch:
        request = {
            "name": f"t-{uuid.uuid4().hex[:8]}",
            "image": image,
            "command": ["-c", "pass"],
            "nodes": 1,
            "gpus_per_node": 0,
            "processes_per_node": 1,
            "cpu": "100m",
            "memory": "1500Mi",
            "shared_memory": "256Mi",
            "scratch": "1Gi",
            "grace_seconds": 3,
            **fields,
        }
        started.append(Launch(account_config, request, tmp_path))
        return started[-1]

    yield start
    for item in started:
        print(f"== {item.log}\n{item.text}")
        if item.child.poll() is None:
            item.kill(signal.SIGTERM)
            item.wait(60)


@pytest.fixture
def cluster_store(shared_client: ObjectStore, node_store: str) -> ObjectStore:
    """The store, from this side."""
    return shared_client


@pytest.fixture
def training_inputs(
    cluster_store: ObjectStore, storage_root: str, tmp_path: Path
) -> dict[str, str]:
    """Manifests of a tiny DiT, latents and a prompt embedding: fields of the training stage."""
    import torch
    from safetensors.torch import save

    from components.lib.cosmos.dit.network import DIT_PRESETS, DiT
    from components.lib.cosmos.model_folder import save_model_folder
    from components.lib.shards.latents import prompt_digest

    helpers = load_module(ROOT / "tests" / "training" / "conftest.py")

    def put(kind: Kind, files: dict[str, bytes], meta: dict[str, dict[str, Any]]) -> str:
        uri = f"{storage_root}/inputs/{kind}/"
        entries = []
        for path, data in files.items():
            info = cluster_store.put_bytes(uri + path, data)
            entries.append(
                FileEntry(
                    path=path, bytes=info.bytes, sha256=str(info.sha256), meta=meta.get(path, {})
                )
            )
        manifest = Manifest(
            kind=kind, stage="test", stage_version="1", address="0", uri=uri, files=tuple(entries)
        )
        cluster_store.put_bytes(uri + MANIFEST_NAME, manifest.model_dump_json().encode())
        return uri + MANIFEST_NAME

    model = DiT(DIT_PRESETS["tiny"], seed=5)
    folder = save_model_folder(
        tmp_path / "dit", "dit", "tiny-dit", model.config, model.state_dict()
    )
    rows = torch.randn(512, 64, generator=torch.Generator().manual_seed(4)).bfloat16()
    embedding = save({"embedding": rows, "length": torch.tensor(12)})
    shards = {
        "train-000000.tar": helpers.latent_shard(8, split="train", seed=1),
        "validation-000000.tar": helpers.latent_shard(2, split="validation", seed=3),
    }
    meta = {
        "train-000000.tar": {"split": "train", "samples": 8},
        "validation-000000.tar": {"split": "validation", "samples": 2},
    }
    prompt = f"prompts/{prompt_digest('a road')}.safetensors"
    model_files = {f"model/{path.name}": path.read_bytes() for path in folder.iterdir()}
    return {
        "checkpoint": put("checkpoint", model_files, {}),
        "data": put("latent-dataset", shards, meta),
        "prompts": put("prompt-embeddings", {prompt: embedding}, {}),
        "storage_root": storage_root,
    }


def load_module(path: Path) -> Any:
    """A module by its file."""
    spec = importlib.util.spec_from_file_location(f"helpers_{path.parent.name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
