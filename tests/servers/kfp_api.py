"""What the package kfp-server-api says about KFP's API: its operations, and the fields of bodies.

The client is generated from KFP's OpenAPI files, so its source holds every path, method, query
parameter and body type, and its models every field. Reading them gives an oracle that is not of
our making, at the price of depending on how the generator writes (a test notices when it changes).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import kfp_server_api
from kfp_server_api import models


@dataclass(frozen=True)
class Route:
    """One operation. ``body`` and ``answer`` are names of models, None where there is none."""

    path: str
    method: str
    query: frozenset[str]
    body: str | None
    answer: str | None

    @property
    def regex(self) -> re.Pattern[str]:
        """Matches the paths of this operation; its groups are what stands for the names."""
        return re.compile("^" + re.sub(r"\\\{[^}]+\\\}", "([^/:]+)", re.escape(self.path)) + "$")


def read_routes() -> list[Route]:
    """Every operation of the generated client."""
    routes = []
    for name, service in inspect.getmembers(kfp_server_api, inspect.isclass):
        if not name.endswith("ServiceApi"):
            continue
        for part in re.split(r"\n    def ", inspect.getsource(service)):
            call = re.search(r"call_api\(\s*'([^']+)', '([A-Z]+)'", part)
            if not call:
                continue
            query = frozenset(re.findall(r"query_params\.append\(\('([^']+)'", part))
            body = re.search(r"body_params = local_var_params\['(\w+)'\]", part)
            # The client names a body after its type: recurring_run is a V2beta1RecurringRun.
            kind = "V2beta1" + body[1].title().replace("_", "") if body else None
            answer = re.search(r"response_type='(\w+)'", part)
            routes.append(Route(call[1], call[2], query, kind, answer[1] if answer else None))
    return routes


def violations(kind: str, value: object, where: str = "body") -> Iterator[str]:
    """What a model of the generated client has against a JSON value."""
    if match := re.fullmatch(r"list\[(.*)\]", kind):
        if not isinstance(value, list):
            yield f"{where} is not a list"
            return
        for index, item in enumerate(value):
            yield from violations(match[1], item, f"{where}[{index}]")
    elif re.fullmatch(r"dict\(str, (.*)\)", kind):
        if not isinstance(value, dict):
            yield f"{where} is not a mapping"
    elif hasattr(models, kind):
        yield from _model_violations(kind, value, where)
    else:
        plain: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "bool": bool}
        if where.endswith(".max_concurrency"):  # protobuf's JSON takes an int64 in both forms
            plain["str"] = (str, int)
        if kind in plain and not isinstance(value, plain[kind]):
            yield f"{where} is {value!r}, not {kind}"


def _model_violations(kind: str, value: object, where: str) -> Iterator[str]:
    model = getattr(models, kind)
    if hasattr(model, "allowable_values"):
        if value not in model.allowable_values:
            yield f"{where} is {value!r}, not one of {model.allowable_values}"
        return
    if not isinstance(value, dict):
        yield f"{where} is {value!r}, not a {kind}"
        return
    attributes: Mapping[str, str] = model.attribute_map
    names = {json_name: attribute for attribute, json_name in attributes.items()}
    for key, item in value.items():
        if key not in names:
            yield f"{where} has no field {key}"
        else:
            yield from violations(model.openapi_types[names[key]], item, f"{where}.{key}")
