"""A pipeline as YAML: compiled for a cluster, and asked whether parameters fit it.

Images are replaced in the text, not in the graph: every place that names a default image then
names the other one, the jobs that training starts included.
"""

from __future__ import annotations

import difflib
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.lib.contract import UserError


def compile_pipeline(
    name: str,
    images: Mapping[str, str] | None = None,
    gpu_type: str | None = None,
    encode_pods: int = 1,
) -> str:
    """The YAML of a pipeline for a cluster, with images replaced and pods chosen as asked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from kfp import compiler

        from pipelines import catalog, profiles

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pipeline.yaml"
            profile = profiles.Profile(cluster=True, gpu_type=gpu_type, encode_pods=encode_pods)
            compiler.Compiler().compile(catalog.load(name, profile), str(path))
            text = path.read_text()
    for default, reference in (images or {}).items():
        text = text.replace(f"image: {default}\n", f"image: {reference}\n")
        text = text.replace(f"value: {default}\n", f"value: {reference}\n")  # of the jobs
    return text


def image_overrides(pairs: list[str]) -> dict[str, str]:
    """Default image -> replacement, from ``name=reference`` pairs."""
    from components import images

    known = {"data": images.DATA, "preprocess": images.PREPROCESS, "train": images.TRAIN}
    result = {}
    for pair in pairs:
        name, separator, reference = pair.partition("=")
        if name not in known or not separator or not reference:
            raise UserError(
                f"--image {pair} is not name=reference with a name of {', '.join(known)}."
            )
        result[known[name]] = reference
    return result


def read_spec(text: str) -> dict[str, Any]:
    """The pipeline's own document of compiled YAML; a second one is of the platform."""
    import yaml

    return dict(next(iter(yaml.safe_load_all(text))))


def check_parameters(text: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters that fit the compiled pipeline. Raises UserError naming the one that does not."""
    from components.harness.overrides import check_overrides

    inputs = read_spec(text)["root"].get("inputDefinitions", {}).get("parameters", {})
    for name in parameters:
        if name not in inputs:
            near = difflib.get_close_matches(name, inputs, n=1)
            hint = f"Did you mean '{near[0]}'?" if near else f"There are: {', '.join(inputs)}."
            raise UserError(f"The pipeline has no parameter '{name}'. {hint}")
    for name, spec in inputs.items():
        if name in parameters:
            _check_type(name, spec["parameterType"], parameters[name])
        elif "defaultValue" not in spec and not spec.get("isOptional"):
            raise UserError(f"The parameter '{name}' is required. Give --parameter {name}=….")
    check_overrides(parameters.get("overrides") or [])
    return dict(parameters)


def _check_type(name: str, kind: str, value: Any) -> None:
    fits = {
        "STRING": isinstance(value, str),
        "NUMBER_INTEGER": isinstance(value, int) and not isinstance(value, bool),
        "NUMBER_DOUBLE": isinstance(value, int | float) and not isinstance(value, bool),
        "BOOLEAN": isinstance(value, bool),
        "LIST": isinstance(value, list),
        "STRUCT": isinstance(value, dict),
    }
    if not fits.get(kind, True):
        wanted = kind.removeprefix("NUMBER_").lower()
        raise UserError(f"The parameter '{name}' must be a {wanted}, not {value!r}.")
