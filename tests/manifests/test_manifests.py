"""The manifests fit Kubernetes 1.28 to 1.34, are least privilege, and agree with the code."""

import re
import shutil
import subprocess
from typing import Any

import jsonschema
import pytest
import yaml

from components.training.launch.interface import LaunchRequest
from components.training.launch.pods import pod_spec
from components.training.launch.trainjob import TrainJob

from .conftest import QUANTITY, ROOT, pod_templates
from .kustomize import build

VERSIONS = [f"1.{minor}" for minor in range(28, 35)]
FOREIGN = ("trainer.kubeflow.org/", "kueue.x-k8s.io/")


def in_kubernetes(document: Any) -> Any:
    return not document["apiVersion"].startswith(FOREIGN)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_document_fits_the_version(schemas: Any, everything: Any, version: Any) -> None:
    problems = [
        f"{path}: {problem}"
        for path, document in everything
        if in_kubernetes(document)
        for problem in schemas.problems(version, document)
    ]
    assert problems == []


@pytest.mark.parametrize("version", VERSIONS)
def test_pods_of_the_launcher_and_of_the_runtime_fit_the_version(
    schemas: Any, everything: Any, version: Any
) -> None:
    request = LaunchRequest(
        name="x", image="i", command=("a",), priority_class="p", node_selector={"a": "b"}
    )
    assert schemas.pod_problems(version, pod_spec(request, "pytorch")) == []
    for name, spec in pod_templates([document for _, document in everything]):
        assert schemas.pod_problems(version, spec) == [], name


def test_the_check_finds_mistakes(schemas: Any) -> None:
    """An oracle that cannot fail proves nothing."""
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "x"},
        "spec": {"podSelector": {}, "egress": [{"too": []}], "policyTypes": "Egress"},
    }
    assert schemas.problems("1.30", policy) == [
        "networking.k8s.io/v1/NetworkPolicy.spec.egress[0] has no field too",
        "networking.k8s.io/v1/NetworkPolicy.spec.policyTypes must be a list",
    ]
    old = {**policy, "apiVersion": "networking.k8s.io/v1beta1"}
    assert "not known" in schemas.problems("1.30", old)[0]


def test_the_training_runtime_fits_its_crd(everything: Any, crds: Any) -> None:
    runtimes = [document for _, document in everything if document["kind"] == "TrainingRuntime"]
    schema = crds["TrainingRuntime"]["schema"]
    assert len(runtimes) == 1
    jsonschema.validate(runtimes[0], schema)
    job = TrainJob().body(LaunchRequest(name="x", image="i", command=("a",)))
    assert job["spec"]["runtimeRef"]["name"] == runtimes[0]["metadata"]["name"]
    patched = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]
    names = [entry["name"] for entry in patched["replicatedJobs"]]
    assert names == [
        entry["name"] for entry in runtimes[0]["spec"]["template"]["spec"]["replicatedJobs"]
    ]


def test_pods_are_restricted(everything: Any) -> None:
    for name, spec in pod_templates([document for _, document in everything]):
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] >= 10000, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["serviceAccountName"] != "default", name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        assert all("hostPath" not in volume for volume in spec.get("volumes", [])), name
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            resources = container["resources"]
            assert {"cpu", "memory"} <= set(resources["requests"]), name
            assert "memory" in resources["limits"], name


def test_images_are_pinned(everything: Any) -> None:
    """By digest, or our own, which releases replace by digest."""
    images = [
        container["image"]
        for _, spec in pod_templates([document for _, document in everything])
        for container in spec["containers"]
    ]
    assert images
    for image in images:
        assert re.search(r"@sha256:[0-9a-f]{64}$", image) or image.startswith("cosmos-pipelines/")
        assert not image.endswith(":latest")


def test_roles_grant_no_more_than_listed(everything: Any) -> None:
    """The whole grant, written out: widening a role must change this test."""
    granted = set()
    for _, document in everything:
        assert document["kind"] not in ("ClusterRole", "ClusterRoleBinding")
        if document["kind"] == "Role":
            for rule in document["rules"]:
                for resource in rule["resources"]:
                    names = tuple(rule.get("resourceNames", ()))
                    granted |= {(resource, verb, names) for verb in rule["verbs"]}
    jobs = {
        (kind, verb, ())
        for kind in ("pytorchjobs", "trainjobs")
        for verb in ("create", "get", "watch", "patch", "delete")
    }
    assert granted == jobs | {
        ("pods", "list", ()),
        ("events", "list", ()),
        ("resourcequotas", "list", ()),
        ("pods/log", "get", ()),
        ("configmaps", "get", ("kfp-launcher",)),
        ("secrets", "get", ("cosmos-s3",)),
        ("workflowtaskresults", "create", ()),
        ("workflowtaskresults", "patch", ()),
    }


def test_only_the_pipeline_account_is_bound(overlay: Any) -> None:
    accounts = {d["metadata"]["name"] for d in overlay if d["kind"] == "ServiceAccount"}
    for document in overlay:
        if document["kind"] == "RoleBinding":
            assert [subject["name"] for subject in document["subjects"]] == ["cosmos-pipeline"]
            assert document["subjects"][0]["name"] in accounts


def test_the_namespace_enforces_restricted(overlay: Any) -> None:
    namespace = next(document for document in overlay if document["kind"] == "Namespace")
    labels = namespace["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_traffic_is_denied_by_default_and_the_internet_opened_only_by_label(overlay: Any) -> None:
    policies = {d["metadata"]["name"]: d["spec"] for d in overlay if d["kind"] == "NetworkPolicy"}
    deny = policies.pop("default-deny")
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, spec in policies.items():
        for rule in spec.get("egress", []):
            for peer in rule.get("to", [{}]):
                if peer.get("ipBlock", {}).get("cidr") == "0.0.0.0/0":
                    assert spec["podSelector"]["matchLabels"] == {
                        "cosmos-pipelines.dev/egress": "huggingface"
                    }, name


def test_ranks_may_reach_each_other_and_are_labelled_for_it(everything: Any) -> None:
    from components.training.launch.pods import pod_labels

    policy = next(d for _, d in everything if d["metadata"]["name"] == "rank-to-rank")
    wanted = policy["spec"]["podSelector"]["matchLabels"].items()
    request = LaunchRequest(name="x", image="i", command=("a",))
    assert wanted <= pod_labels(request).items()
    assert policy["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"].items() == wanted


def test_no_secret_is_part_of_a_kustomization(overlay: Any) -> None:
    assert not [document for document in overlay if document["kind"] == "Secret"]


def test_secret_templates_have_the_keys_that_the_pipelines_read(everything: Any) -> None:
    from components.training.launch.names import HUGGINGFACE, STORE, WANDB

    templates = {d["metadata"]["name"]: d["stringData"] for _, d in everything
                 if d["kind"] == "Secret"}  # fmt: skip
    uses = {use.name: set(use.variables) for use in (STORE, HUGGINGFACE, WANDB)}
    assert {name: set(keys) for name, keys in templates.items()} == uses
    assert set(uses["cosmos-huggingface"]) == {"token"}
    assert set(uses["cosmos-wandb"]) == {"api-key"}


def test_the_store_of_kfp_uses_the_same_secret(everything: Any) -> None:
    for _, document in everything:
        if document["metadata"]["name"] == "kfp-launcher":
            providers = yaml.safe_load(document["data"]["providers"])
            reference = providers["s3"]["default"]["credentials"]["secretRef"]
            assert reference == {
                "secretName": "cosmos-s3",
                "accessKeyKey": "access-key",
                "secretKeyKey": "secret-key",
            }


def test_quantities_and_selectors_are_well_formed(everything: Any) -> None:
    for path, document in everything:
        if document["kind"] == "ResourceQuota":
            for value in document["spec"]["hard"].values():
                assert QUANTITY.fullmatch(value), path
        if document["kind"] == "StatefulSet":
            labels = document["spec"]["template"]["metadata"]["labels"]
            assert document["spec"]["selector"]["matchLabels"].items() <= labels.items()
            for container in document["spec"]["template"]["spec"]["containers"]:
                assert "readinessProbe" in container and "livenessProbe" in container


def test_kueue_names_agree(everything: Any) -> None:
    """No schema of Kueue is at hand; its cross references are checked instead."""
    kueue = {d["kind"]: d for _, d in everything if d["apiVersion"].startswith("kueue")}
    cluster_queue = kueue["ClusterQueue"]
    groups = cluster_queue["spec"]["resourceGroups"]
    assert kueue["LocalQueue"]["spec"]["clusterQueue"] == cluster_queue["metadata"]["name"]
    for group in groups:
        for flavor in group["flavors"]:
            assert flavor["name"] == kueue["ResourceFlavor"]["metadata"]["name"]
            assert [entry["name"] for entry in flavor["resources"]] == group["coveredResources"]


def test_every_file_belongs_to_a_kustomization() -> None:
    named = set()
    for kustomization in ROOT.rglob("kustomization.yaml"):
        spec = yaml.safe_load(kustomization.read_text())
        patches = [patch["path"] for patch in spec.get("patches", []) if "path" in patch]
        for name in [*spec.get("resources", []), *patches]:
            target = (kustomization.parent / name).resolve()
            assert target.exists(), f"{kustomization} names {name}, which is not there"
            named.add(target)
    files = {path for path in ROOT.rglob("*.yaml") if path.name != "kustomization.yaml"}
    assert files - named == {ROOT / "base" / "secrets.example.yaml"}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("name", ["single-node", "production"])
def test_kubectl_builds_the_same(name: str) -> None:
    folder = ROOT / "overlays" / name
    built = subprocess.run(
        ["kubectl", "kustomize", folder], capture_output=True, text=True, check=False
    )
    if "unknown field" in built.stderr:
        pytest.skip("this kubectl is older than kustomize's components (1.21)")
    assert built.returncode == 0, built.stderr
    key = lambda document: (document["kind"], document["metadata"]["name"])  # noqa: E731
    theirs = sorted(yaml.safe_load_all(built.stdout), key=key)
    assert sorted(build(folder), key=key) == theirs


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_applied_fits_the_version(schemas: Any, overlay: Any, version: Any) -> None:
    """The built overlays: patches may break what the files had right."""
    for document in overlay:
        if in_kubernetes(document):
            assert schemas.problems(version, document) == []
        if document["kind"] == "RoleBinding":
            assert document["subjects"][0]["namespace"] == "cosmos"
