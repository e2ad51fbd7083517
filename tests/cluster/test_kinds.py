"""A real API server takes what we send, and the doctor sees the cluster as it is."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from components.training.launch.interface import Backend, LaunchRequest, Toleration
from components.training.launch.kube import ApiError, Cluster
from components.training.launch.pytorchjob import PyTorchJob
from components.training.launch.trainjob import TrainJob
from pipelines.backend import checks

from ..manifests.kustomize import build as kustomize
from .kubectl import NAMESPACE, ROOT, kubectl

REQUEST = LaunchRequest(
    name="kind-1",
    image="none",
    command=("-m", "x"),
    nodes=4,
    env={"A": "b"},
    tolerations=(Toleration(key="nvidia.com/gpu", effect="NoSchedule"),),
    node_selector={"gpu": "h100"},
    active_deadline_seconds=60,
    suspend=True,
)


def without_empty_defaults(schema: object) -> object:
    """This API server's version refuses ``default: ""``."""
    if isinstance(schema, dict):
        return {
            key: "unset" if key == "default" and value == "" else without_empty_defaults(value)
            for key, value in schema.items()
            if key != "x-kubernetes-validations"
        }
    return [without_empty_defaults(item) for item in schema] if isinstance(schema, list) else schema


@pytest.fixture(scope="module")
def trainer_installed(applied: None) -> Iterator[None]:
    """The CRDs of Kubeflow Trainer, without its controller."""
    crds = json.loads(gzip.decompress((ROOT / "tests" / "data" / "crds.json.gz").read_bytes()))
    names = []
    for kind in ("TrainJob", "TrainingRuntime"):
        crd = crds[kind]
        names.append(f"{crd['plural']}.{crd['group']}")
        body = {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": names[-1]},
            "spec": {
                "group": crd["group"],
                "scope": "Namespaced",
                "names": {
                    "kind": kind, "plural": crd["plural"], "singular": kind.lower(),
                    "listKind": f"{kind}List",
                },
                "versions": [
                    {
                        "name": crd["version"], "served": True, "storage": True,
                        "schema": {"openAPIV3Schema": without_empty_defaults(crd["schema"])},
                        "subresources": {"status": {}},
                    }
                ],
            },
        }  # fmt: skip
        kubectl("create", "--validate=false", "-f", "-", stdin=json.dumps(body))
    for name in names:
        kubectl("wait", "--for=condition=Established", "--timeout=30s", f"crd/{name}")
    time.sleep(1)
    yield
    kubectl("delete", "crd", *names)


@pytest.fixture
def administrator() -> Cluster:
    """An administrator's connection to our namespace."""
    return Cluster.connect(NAMESPACE, print)


@pytest.mark.parametrize("backend", [PyTorchJob(), TrainJob()])
def test_jobs_are_accepted_and_nothing_is_pruned(
    trainer_installed: None, administrator: Cluster, backend: Backend
) -> None:
    kind = (backend.group, backend.version, backend.plural)
    body = backend.body(REQUEST)
    administrator.create(*kind, body)
    try:
        stored = administrator.get(*kind, REQUEST.name)
        assert stored is not None
        assert lost(body["spec"], stored["spec"]) == []
        with pytest.raises(ApiError) as twice:
            administrator.create(*kind, body)
        assert twice.value.status == 409
    finally:
        administrator.delete(*kind, REQUEST.name)


def lost(sent: object, stored: object, where: str = "spec") -> list[str]:
    """What the server did not keep."""
    if isinstance(sent, dict) and isinstance(stored, dict):
        return [
            problem
            for key, value in sent.items()
            for problem in (
                lost(value, stored[key], f"{where}.{key}")
                if key in stored
                else [f"{where}.{key}"] * (value is not False)
            )
        ]
    if isinstance(sent, list) and isinstance(stored, list):
        pairs = zip(sent, stored, strict=True)
        return [p for i, (a, b) in enumerate(pairs) for p in lost(a, b, f"{where}[{i}]")]
    return [] if str(sent) == str(stored) else [where]


def test_the_runtime_is_accepted(trainer_installed: None) -> None:
    path = Path(ROOT / "manifests" / "components" / "trainer" / "runtime.yaml")
    kubectl("apply", "-f", str(path))
    stored = yaml.safe_load(
        kubectl("get", "trainingruntimes", "cosmos-torch", "-n", NAMESPACE, "-o", "yaml")
    )
    assert lost(yaml.safe_load(path.read_text())["spec"], stored["spec"]) == []


@pytest.mark.parametrize("overlay", ["single-node", "production"])
def test_the_server_accepts_every_document(trainer_installed: None, overlay: str) -> None:
    """A dry run. Kueue's kinds, which are not installed here, are left out."""
    documents = [
        document
        for document in kustomize(ROOT / "manifests" / "overlays" / overlay)
        if "kueue" not in document["apiVersion"]
    ]
    answer = kubectl(
        "apply", "--dry-run=server", "--validate=false", "-f", "-",
        stdin=yaml.safe_dump_all(documents),
    )  # fmt: skip
    assert len(answer.splitlines()) == len(documents)


def test_the_doctor_finds_nothing_wrong(node_store: str, administrator: Cluster) -> None:
    findings = [
        finding
        for check in (checks.kubernetes, checks.secrets, checks.gpus)
        for finding in check(administrator)
    ]
    assert [finding for finding in findings if finding.state == "bad"] == []
    texts = {finding.what for finding in findings if finding.state == "good"}
    assert "pytorchjobs are installed" in texts
    assert "the ServiceAccount cosmos-pipeline has its rights" in texts
    assert "the Secret cosmos-s3 is complete" in texts
    assert any(text.endswith("GPUs (localhost: 8)") for text in texts)


def test_the_bucket_is_made_from_a_pod(node_store: str, image: str) -> None:
    """The Job of components/seaweedfs, with its security context, Secret and our code."""
    path = ROOT / "manifests" / "components" / "seaweedfs" / "seaweedfs.yaml"
    documents = [d for d in yaml.safe_load_all(path.read_text()) if d["kind"] == "Job"]
    documents[0]["spec"]["template"]["spec"]["containers"][0]["image"] = image
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(documents))
    name = documents[0]["metadata"]["name"]
    try:
        kubectl(
            "wait", "-n", NAMESPACE, "--for=condition=complete", "--timeout=120s", f"job/{name}"
        )
    finally:
        kubectl("delete", "job", name, "-n", NAMESPACE)
