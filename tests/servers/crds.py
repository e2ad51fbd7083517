"""The custom resources of training operators, and what their schemas have against an object.

The openAPIV3Schema of each kind is data of the project (`tests/data/crds.json.gz`). A real server
that is asked for ``fieldValidation=Strict`` refuses fields that a schema does not know; a JSON
schema with ``additionalProperties: false`` everywhere does the same.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jsonschema

from tests.servers.loopback import Json

FILE = Path(__file__).parents[1] / "data" / "crds.json.gz"
SAME = ("type", "enum", "required", "minimum", "maximum", "minLength", "maxLength", "pattern",
        "minItems", "maxItems")  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """One installed kind."""

    name: str
    group: str
    version: str
    plural: str
    schema: Json

    @property
    def api_version(self) -> str:
        """``apiVersion`` of its objects."""
        return f"{self.group}/{self.version}"

    def problems(self, body: Json) -> list[str]:
        """What the schema has against an object; empty when it is accepted."""
        errors: Iterator[jsonschema.ValidationError] = jsonschema.Draft202012Validator(
            self.schema
        ).iter_errors(body)
        return [error.message for error in errors]


def strict_schema(schema: Json) -> Json:
    """An OpenAPI v3 schema of a CRD as a JSON schema that refuses unknown fields."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": "^[-+0-9.a-zA-Z]+$"}]}
    result = {key: value for key, value in schema.items() if key in SAME}
    if "properties" in schema:
        result["properties"] = {k: strict_schema(v) for k, v in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = strict_schema(schema["additionalProperties"])
    if "items" in schema:
        result["items"] = strict_schema(schema["items"])
    return result


def load_kinds() -> dict[str, Kind]:
    """Plural name -> kind."""
    kinds = {}
    for name, crd in json.loads(gzip.decompress(FILE.read_bytes())).items():
        schema = strict_schema(crd["schema"])
        schema["properties"]["metadata"] = {"type": "object"}  # the server's own to check
        kinds[crd["plural"]] = Kind(name, crd["group"], crd["version"], crd["plural"], schema)
    return kinds
