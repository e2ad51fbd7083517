"""What `kubectl kustomize` builds, for the few features that our manifests use.

So every test sees the documents that a user applies, patches and all, on machines without kubectl
too. Where kubectl is at hand a test compares the two, document by document.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]
KNOWN = {"apiVersion", "kind", "namespace", "labels", "resources", "components", "patches"}
CLUSTER_WIDE = {"Namespace", "ResourceFlavor", "ClusterQueue"}


def read(path: Path) -> list[Document]:
    """The documents of a file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def build(folder: Path) -> list[Document]:
    """The documents of a kustomization, transformed and patched."""
    spec = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = set(spec) - KNOWN
    assert not unknown, f"{folder}: this reader does not know {unknown}"
    documents: list[Document] = []
    for name in [*spec.get("resources", []), *spec.get("components", [])]:
        target = (folder / name).resolve()
        documents += build(target) if target.is_dir() else read(target)
    for patch in spec.get("patches", []):
        text = (folder / patch["path"]).read_text() if "path" in patch else patch["patch"]
        apply(yaml.safe_load(text), patch.get("target"), documents)
    if namespace := spec.get("namespace"):
        put_into(namespace, documents)
    for label in spec.get("labels", []):
        assert not label.get("includeSelectors")
        for document in documents:
            document["metadata"].setdefault("labels", {}).update(label["pairs"])
    return documents


def put_into(namespace: str, documents: list[Document]) -> None:
    """Set the namespace of namespaced documents and of the accounts that bindings name."""
    for document in documents:
        if document["kind"] not in CLUSTER_WIDE:
            document["metadata"]["namespace"] = namespace
        for subject in document.get("subjects", []):
            subject["namespace"] = namespace


def apply(
    patch: Document | list[Document], target: Document | None, documents: list[Document]
) -> None:
    """A list of JSON operations on the target, or a document merged into its namesake."""
    if isinstance(patch, list):
        assert target, "a list of operations names its target"
        wanted = target
    else:
        wanted = target or {"kind": patch["kind"], "name": patch["metadata"]["name"]}
    found = [
        document
        for document in documents
        if document["kind"] == wanted["kind"] and document["metadata"]["name"] == wanted["name"]
    ]
    assert len(found) == 1, f"a patch of {wanted} meets {len(found)} documents"
    if isinstance(patch, dict):
        merge(found[0], patch)
        return
    for operation in patch:
        assert operation["op"] == "replace", operation
        *path, last = (
            part.replace("~1", "/").replace("~0", "~")
            for part in operation["path"].lstrip("/").split("/")
        )
        inner: Any = found[0]
        for part in path:
            inner = inner[int(part) if isinstance(inner, list) else part]
        assert last in inner, f"{operation['path']} is not there to be replaced"
        inner[last] = copy.deepcopy(operation["value"])


def merge(document: Document, patch: Document) -> None:
    """A strategic merge, for patches that hold no lists."""
    for key, value in patch.items():
        assert not isinstance(value, list), f"{key}: lists need their merge keys"
        if isinstance(value, dict) and isinstance(document.get(key), dict):
            merge(document[key], value)
        else:
            document[key] = copy.deepcopy(value)
