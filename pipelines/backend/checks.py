"""What `cosmos-pipelines doctor` checks, one function each.

A check returns findings; it never raises for what it looks at. ``bad`` means that runs will fail,
``unsure`` that it could not be looked at from here, and each of them says what to do.
"""

from __future__ import annotations

import base64
import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Literal

from components.lib.contract import Frozen, UserError
from components.training.launch.kinds import JOB_KINDS
from components.training.launch.kube import ApiError, Cluster
from components.training.launch.names import HUGGINGFACE, STEP_ACCOUNT, STORE, WANDB

# What the launcher calls; manifests/base/roles.yaml grants the same (a test compares them).
NEEDED_RIGHTS = (
    *(
        (group, resource, verb)
        for group, _, resource in (kind.path for kind in JOB_KINDS.values())
        for verb in ("create", "get", "watch", "patch", "delete")
    ),
    ("", "pods", "list"),
    ("", "events", "list"),
    ("", "resourcequotas", "list"),
    ("", "pods/log", "get"),
)
SECRETS = (STORE, HUGGINGFACE, WANDB)
GATED_MODEL = "nvidia/Cosmos-1.0-Diffusion-7B-Text2World"


class Finding(Frozen):
    """One line of the doctor's report."""

    state: Literal["good", "unsure", "bad"]
    what: str
    advice: str = ""


def kfp(endpoint: str | None, namespace: str | None) -> Iterator[Finding]:
    """Can KFP be reached, and does it know us?"""
    from pipelines.backend.connection import Connection, Server
    from pipelines.backend.runs import list_runs

    try:
        server = Server(Connection(endpoint=endpoint, namespace=namespace, patience_s=5.0))
        health = server.call("Asking KFP for its health", server.api.get_kfp_healthz)
        mode = "multi-user" if health.multi_user else "single-user"
        yield Finding(state="good", what=f"KFP ({mode}) answers")
        list_runs(server, 1)
        yield Finding(state="good", what="KFP lets you list runs")
    except UserError as error:
        yield Finding(state="bad", what="KFP", advice=str(error))


def kubernetes(cluster: Cluster) -> Iterator[Finding]:
    """Does the API server answer, are the CRDs there, may the launcher do its work?"""
    try:
        version = cluster.request("GET", "/version").get("gitVersion", "?")
    except UserError as error:
        yield Finding(state="bad", what="Kubernetes API", advice=str(error))
        return
    yield Finding(state="good", what=f"Kubernetes {version} answers")
    yield from _crds(cluster)
    yield from _rights(cluster)


def _crds(cluster: Cluster) -> Iterator[Finding]:
    have: list[tuple[str, str]] = []
    missing: list[tuple[str, str]] = []
    for kind in JOB_KINDS.values():
        group, version, plural = kind.path
        try:
            answer = cluster.request("GET", f"/apis/{group}/{version}")
        except ApiError as error:
            if error.status != 404:
                yield Finding(state="unsure", what=f"CRD {plural}", advice=str(error))
                return
            answer = {}
        names = [resource["name"] for resource in answer.get("resources", [])]
        (have if plural in names else missing).append((plural, kind.install))
    for plural, _ in have:
        yield Finding(state="good", what=f"{plural} are installed")
    for plural, advice in missing:
        # One of the two kinds is enough.
        yield Finding(
            state="unsure" if have else "bad", what=f"{plural} are not installed", advice=advice
        )


def _rights(cluster: Cluster) -> Iterator[Finding]:
    """Of the steps' account when we may ask, else of whoever we are."""
    account = f"system:serviceaccount:{cluster.namespace}:{STEP_ACCOUNT}"
    refused = []
    for group, resource, verb in NEEDED_RIGHTS:
        name, _, subresource = resource.partition("/")
        attributes = {
            "namespace": cluster.namespace,
            "group": group,
            "resource": name,
            "subresource": subresource,
            "verb": verb,
        }
        kind = "localsubjectaccessreviews"
        path = f"/apis/authorization.k8s.io/v1/namespaces/{cluster.namespace}/{kind}"
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "LocalSubjectAccessReview",
            "metadata": {"namespace": cluster.namespace},
            "spec": {"user": account, "resourceAttributes": attributes},
        }
        try:
            answer = cluster.request("POST", path, body=body)
        except ApiError as error:
            yield Finding(
                state="unsure",
                what=f"rights of the ServiceAccount {STEP_ACCOUNT}",
                advice=f"You may not ask ({error.status}). Somebody with more rights can: "
                f"kubectl auth can-i --as {account} create pytorchjobs.kubeflow.org",
            )
            return
        if not (answer.get("status") or {}).get("allowed"):
            refused.append(f"{verb} {resource}")
    if refused:
        yield Finding(
            state="bad",
            what=f"the ServiceAccount {STEP_ACCOUNT} may not {', '.join(refused)}",
            advice="kubectl apply -k manifests/overlays/single-node (or your overlay).",
        )
    else:
        yield Finding(state="good", what=f"the ServiceAccount {STEP_ACCOUNT} has its rights")


def secrets(cluster: Cluster) -> Iterator[Finding]:
    """Are the Secrets there, with the keys that steps read? Values are not looked at."""
    path = f"/api/v1/namespaces/{cluster.namespace}/secrets"
    for use in SECRETS:
        name = use.name
        try:
            secret = cluster.request("GET", f"{path}/{name}")
        except ApiError as error:
            if error.status == 404:
                yield Finding(
                    state="unsure" if use.optional else "bad",
                    what=f"there is no Secret {name}",
                    advice="Make it from manifests/base/secrets.example.yaml"
                    + (", if you need it." if use.optional else "."),
                )
            else:
                yield Finding(state="unsure", what=f"Secret {name}", advice=str(error))
            continue
        missing = [key for key in use.keys if not (secret.get("data") or {}).get(key)]
        placeholder = [
            key
            for key in use.keys
            if base64.b64decode((secret.get("data") or {}).get(key, "")) == b"REPLACE"
        ]
        if missing or placeholder:
            yield Finding(
                state="bad",
                what=f"the Secret {name} has no {', '.join(missing + placeholder)}",
                advice="Fill it in as manifests/base/secrets.example.yaml shows.",
            )
        else:
            yield Finding(state="good", what=f"the Secret {name} is complete")


def gpus(cluster: Cluster) -> Iterator[Finding]:
    """How many GPUs do the nodes offer?"""
    try:
        nodes = cluster.request("GET", "/api/v1/nodes").get("items") or []
    except ApiError as error:
        yield Finding(state="unsure", what="GPUs", advice=f"You may not list nodes: {error}")
        return
    counts = {
        node["metadata"]["name"]: int(
            (node.get("status") or {}).get("allocatable", {}).get("nvidia.com/gpu", 0)
        )
        for node in nodes
    }
    with_gpus = {name: count for name, count in counts.items() if count}
    if with_gpus:
        listed = ", ".join(f"{name}: {count}" for name, count in with_gpus.items())
        yield Finding(state="good", what=f"{sum(with_gpus.values())} GPUs ({listed})")
    else:
        yield Finding(
            state="bad",
            what=f"none of {len(counts)} nodes offers nvidia.com/gpu",
            advice="Install NVIDIA's device plugin or GPU operator, or set gpus to 0 for trials.",
        )


def storage(root: str) -> Iterator[Finding]:
    """Write, read and delete one small object under the storage root."""
    from components.lib.store import ObjectStore

    if not os.environ.get("AWS_ENDPOINT_URL"):
        yield Finding(
            state="unsure",
            what="object store",
            advice="Set AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to check it.",
        )
        return
    uri = f"{root.rstrip('/')}/doctor/{uuid.uuid4().hex}"
    try:
        store = ObjectStore.from_env()
        store.put_bytes(uri, b"doctor")
        same = store.get_bytes(uri) == b"doctor"
        store.delete(uri)
    except UserError as error:
        yield Finding(state="bad", what=f"object store at {root}", advice=str(error))
        return
    if same:
        yield Finding(state="good", what=f"the object store takes and returns objects at {root}")
    else:
        yield Finding(
            state="bad",
            what=f"the object store returns other bytes than were written at {root}",
            advice="Check what lies between here and the store (a proxy, a cache).",
        )


def huggingface(model: str, get: Callable[..., Any] | None = None) -> Iterator[Finding]:
    """May the token read a gated model?"""
    import urllib3

    get = get or urllib3.PoolManager().request
    token = os.environ.get("HF_TOKEN")
    root = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = f"{root}/{model}/resolve/main/config.json"
    try:
        status = int(get("HEAD", url, headers=headers, timeout=10.0, redirect=False).status)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        yield Finding(
            state="unsure",
            what="Hugging Face",
            advice=f"Not reachable from here ({type(error).__name__}). Steps that fetch need port "
            f"443 to {root}, or checkpoints as s3://… URIs.",
        )
        return
    if status in (401, 403):
        yield Finding(
            state="bad",
            what=f"Hugging Face refuses {model} ({status})",
            advice=f"Accept the licence at {root}/{model} and set HF_TOKEN to a read token of that "
            "account (in the cluster: the Secret cosmos-huggingface).",
        )
    elif status < 500:
        yield Finding(state="good", what=f"Hugging Face lets you read {model}")
    else:
        yield Finding(
            state="unsure", what=f"Hugging Face answers {status}", advice="Try again later."
        )
