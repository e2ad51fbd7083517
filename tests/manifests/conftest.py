"""Schemas of Kubernetes 1.28 to 1.34, and the documents of the kustomize tree."""

import gzip
import json
import lzma
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from .kustomize import Document, build, read

DATA = Path(__file__).parents[1] / "data"
ROOT = Path(__file__).parents[2] / "manifests"
Everything = list[tuple[Path, Document]]
QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?")


class Schemas:
    """Field names, types and required fields, as Kubernetes' own Python models have them."""

    def __init__(self) -> None:
        self.versions = json.loads(lzma.decompress((DATA / "kubernetes.json.xz").read_bytes()))

    def problems(self, version: str, document: Document) -> list[str]:
        """What this version of Kubernetes has against a document."""
        key = f"{document['apiVersion']}/{document['kind']}"
        found = self.versions[version]
        if key not in found["kinds"]:
            return [f"{key} is not known to Kubernetes {version}"]
        return list(self._check(found["types"], found["kinds"][key], document, key))

    def pod_problems(self, version: str, spec: Document) -> list[str]:
        """What it has against the spec of a pod."""
        return list(self._check(self.versions[version]["types"], "V1PodSpec", spec, "pod"))

    def _check(self, types: Document, kind: str, value: object, where: str) -> Iterator[str]:
        if match := re.fullmatch(r"list\[(.*)\]", kind):
            if not isinstance(value, list):
                yield f"{where} must be a list"
                return
            for index, item in enumerate(value):
                yield from self._check(types, match[1], item, f"{where}[{index}]")
        elif match := re.fullmatch(r"dict\(str, (.*)\)", kind):
            if not isinstance(value, dict):
                yield f"{where} must be a mapping"
                return
            for key, item in value.items():
                yield from self._check(types, match[1], item, f"{where}.{key}")
        elif kind in types:
            if not isinstance(value, dict):
                yield f"{where} must be a mapping"
                return
            for field in types[kind]["required"]:
                if value.get(field) is None:
                    yield f"{where} lacks {field}"
            for field, item in value.items():
                if field not in types[kind]["fields"]:
                    yield f"{where} has no field {field}"
                else:
                    inner = types[kind]["fields"][field]
                    yield from self._check(types, inner, item, f"{where}.{field}")
        else:
            plain: dict[str, type | tuple[type, ...]] = {
                "str": str,
                "int": int,
                "bool": bool,
                "object": (str, int, dict),
            }
            if kind in plain and not isinstance(value, plain[kind]):
                yield f"{where} must be {kind}, not {value!r}"
            elif kind == "int" and isinstance(value, bool):
                yield f"{where} must be int, not {value!r}"


def pod_templates(documents: Iterable[Document]) -> Iterator[tuple[str, Document]]:
    """(name, pod spec) of everything that starts pods."""
    for document in documents:
        name = f"{document['kind']}/{document['metadata']['name']}"
        if document["kind"] in ("StatefulSet", "Job"):
            yield name, document["spec"]["template"]["spec"]
        if document["kind"] == "TrainingRuntime":
            for job in document["spec"]["template"]["spec"]["replicatedJobs"]:
                yield name, job["template"]["spec"]["template"]["spec"]


@pytest.fixture(scope="session")
def schemas() -> Schemas:
    """All versions."""
    return Schemas()


@pytest.fixture(scope="session")
def everything() -> Everything:
    """Every document of every base, component and overlay."""
    documents: Everything = []
    for path in sorted(ROOT.rglob("*.yaml")):
        if path.name != "kustomization.yaml":
            documents += [(path.relative_to(ROOT), document) for document in read(path)]
    return documents


@pytest.fixture(scope="session")
def crds() -> Document:
    """The training operators' kinds."""
    return json.loads(gzip.decompress((DATA / "crds.json.gz").read_bytes()))


@pytest.fixture(params=["single-node", "production"])
def overlay(request: pytest.FixtureRequest) -> list[Document]:
    """The documents of an overlay, built."""
    return build(ROOT / "overlays" / request.param)
