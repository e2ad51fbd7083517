"""The object store of components/seaweedfs, as its manifest starts it: rights, probes, disk."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from components.lib.store import ObjectStore
from components.lib.store.embedded import EmbeddedStore, weed_binary
from components.lib.store.errors import StoreError

from ..images.building import BASE, ensure_base
from ..manifests.kustomize import build
from .kubectl import NAMESPACE, ROOT, kubectl

IMAGE = "local/seaweedfs:test"
POD = "seaweedfs-0"


@pytest.fixture(scope="module")
def weed_image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """SeaweedFS' binary on the local base; the release's own image needs a registry."""
    ensure_base()
    folder = tmp_path_factory.mktemp("weed")
    shutil.copy(weed_binary(), folder / "weed")
    text = f"FROM {BASE}\nCOPY weed /usr/local/bin/weed\n"
    (folder / "Dockerfile").write_text(text)
    subprocess.run(
        ["docker", "build", "-q", "-t", IMAGE, folder],
        check=True, capture_output=True, env={**os.environ, "DOCKER_BUILDKIT": "0"},
    )  # fmt: skip
    return IMAGE


@pytest.fixture
def seaweedfs(node_store: str, weed_image: str, tmp_path: Path) -> Iterator[None]:
    """StatefulSet and Service as the overlay has them, on a disk of this machine."""
    documents = [
        document
        for document in build(ROOT / "manifests" / "overlays" / "single-node")
        if document["kind"] in ("StatefulSet", "Service")
    ]
    stateful = next(d for d in documents if d["kind"] == "StatefulSet")
    stateful["spec"]["template"]["spec"]["containers"][0]["image"] = weed_image
    disk = tmp_path / "disk"
    disk.mkdir()
    disk.chmod(0o777)  # a host folder is not given to the pod's group, as a real disk is
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "cosmos-test"},
        "spec": {
            "capacity": {"storage": "20Gi"},
            "accessModes": ["ReadWriteOnce"],
            "hostPath": {"path": str(disk)},
        },
    }
    kubectl("apply", "--validate=false", "-f", "-", stdin=yaml.safe_dump_all([volume, *documents]))
    ready()
    yield
    kubectl("delete", "statefulset,service", "seaweedfs", "-n", NAMESPACE)
    kubectl("delete", "pvc", f"data-{POD}", "-n", NAMESPACE, "--wait=false")
    kubectl("delete", "pv", "cosmos-test", "--wait=false")


def ready() -> None:
    kubectl("rollout", "status", "statefulset/seaweedfs", "-n", NAMESPACE, "--timeout=180s")


def client(credentials: dict[str, str]) -> ObjectStore:
    """A connection to the pod, whose address changes with it."""
    address = kubectl("get", "pod", POD, "-n", NAMESPACE, "-o", "jsonpath={.status.podIP}")
    return ObjectStore.from_env({**credentials, "AWS_ENDPOINT_URL": f"http://{address}:8333"})


@pytest.mark.timeout(900)
def test_the_store_serves_with_the_secret_s_keys_and_keeps_its_objects(
    seaweedfs: None, embedded_store: EmbeddedStore
) -> None:
    store = client(embedded_store.env)
    store.ensure_bucket("cosmos")
    store.put_bytes("s3://cosmos/kept", b"what a run left")
    assert store.get_bytes("s3://cosmos/kept") == b"what a run left"
    stranger = client({**embedded_store.env, "AWS_SECRET_ACCESS_KEY": "not the key"})
    with pytest.raises(StoreError):
        stranger.get_bytes("s3://cosmos/kept")
    kubectl("delete", "pod", POD, "-n", NAMESPACE)
    ready()
    assert client(embedded_store.env).get_bytes("s3://cosmos/kept") == b"what a run left"
