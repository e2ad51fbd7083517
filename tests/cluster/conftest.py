"""A real cluster (KUBECONFIG): our manifests, our training image, a store that pods can reach.

The store is the session's SeaweedFS on loopback; a forwarder on the node's address
(`tests.servers.forwarder`) lets pods reach it. The launcher runs as a child process
(`tests.cluster.launcher`) with the token of the ServiceAccount that steps have, so everything it
does is allowed by the Roles in manifests/base.
"""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from components.lib.manifest import MANIFEST_NAME, FileEntry, Kind, Manifest
from components.lib.store import ObjectStore
from components.lib.store.embedded import EmbeddedStore
from tests.cluster.kubectl import NAMESPACE, ROOT, kubectl
from tests.cluster.launcher import Launch
from tests.servers.forwarder import forwarded

from ..images.building import build
from ..manifests.kustomize import build as kustomize

if TYPE_CHECKING:
    from kubernetes.client import CoreV1Api

IMAGE = "local/cosmos-train:test"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs a cluster."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            if "KUBECONFIG" not in os.environ:
                item.add_marker(pytest.mark.skip(reason="KUBECONFIG names no cluster"))


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
def core() -> CoreV1Api:
    """The administrator's API client."""
    from kubernetes import client, config

    config.load_kube_config()
    return client.CoreV1Api()


@pytest.fixture(scope="session")
def config_of(
    applied: None, core: CoreV1Api, tmp_path_factory: pytest.TempPathFactory
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
def node_store(embedded_store: EmbeddedStore, core: CoreV1Api, applied: None) -> Iterator[str]:
    """Address under which pods reach the store; the Secret cosmos-s3 says so."""
    node = core.list_node().items[0]
    address = next(a.address for a in node.status.addresses if a.type == "InternalIP")
    port = int(embedded_store.env["AWS_ENDPOINT_URL"].rsplit(":", 1)[1])
    with forwarded(address, port) as outside:
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


@pytest.fixture(scope="session")
def image() -> str:
    """Our training image: COSMOS_TEST_TRAIN_IMAGE, else built from this tree."""
    given = os.environ.get("COSMOS_TEST_TRAIN_IMAGE")
    if given:
        return given
    print(build("train", IMAGE))
    return IMAGE


@pytest.fixture
def launch(account_config: Path, tmp_path: Path, image: str) -> Iterator[Callable[..., Launch]]:
    """Start a launcher; keyword arguments are fields of its LaunchRequest."""
    started: list[Launch] = []

    def start(**fields: object) -> Launch:
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
    from tests.training.conftest import latent_shard

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
        "train-000000.tar": latent_shard(8, split="train", seed=1),
        "validation-000000.tar": latent_shard(2, split="validation", seed=3),
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
