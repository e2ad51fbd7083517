"""The README.md of an exported model: what it is, what it was trained on, how to load it.

Facts come from the manifest of the run that made the model and from the manifests of its inputs,
never from guesses: without a manifest the card says that the origin is not recorded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from components.lib.contract import Frozen, UserError
from components.lib.cosmos.families import Family, family_named
from components.lib.manifest import Manifest, load_manifest

if TYPE_CHECKING:
    from components.lib.store import ObjectStore

LIBRARIES = {"diffusers": "diffusers", "jit": "torchscript", "model.pt": "pytorch"}
_CANONICAL_USE = (
    "from pathlib import Path\n"
    "from components.lib.cosmos.model_folder import load_{family}\n"
    'model = load_{family}(Path("{place}"))'
)
_LICENCE = (
    "Models derived from NVIDIA Cosmos-1.0 are under the NVIDIA Open Model License, which asks "
    "that its guardrails are not bypassed: "
    "https://www.nvidia.com/en-us/agreements/enterprise-software/nvidia-open-model-license/"
)


class Origin(Frozen):
    """How a model came to be, as its manifests tell it."""

    manifest: Manifest | None = None
    inputs: dict[str, Manifest] = {}
    unread: dict[str, str] = {}


def trace_origin(manifest: Manifest, store: ObjectStore) -> Origin:
    """The manifest and those of its inputs; inputs that are gone are listed by their URI."""
    inputs: dict[str, Manifest] = {}
    unread: dict[str, str] = {}
    for name, ref in manifest.inputs.items():
        try:
            inputs[name] = load_manifest(ref.uri, store)
        except UserError:
            unread[name] = ref.uri
    return Origin(manifest=manifest, inputs=inputs, unread=unread)


def model_card(
    *,
    title: str,
    family: str,
    form: str,
    source: str,
    config: Mapping[str, Any],
    parameters: int,
    dtypes: Mapping[str, int],
    notes: tuple[str, ...] = (),
    origin: Origin | None = None,
) -> str:
    """The text of README.md. ``dtypes`` counts the parameters of each dtype."""
    counts = ", ".join(f"{count:,} {kind}" for kind, count in dtypes.items())
    weights = [f"{parameters:,} parameters ({counts}).", *(f"* {note}" for note in notes)]
    record = family_named(family)
    use = record.uses.get(form, _CANONICAL_USE).format(place="PATH", family=family)
    sections = [
        _front_matter(record, form),
        f"# {title}",
        record.about,
        "## Origin",
        "\n".join(_origin(origin or Origin(), source)),
        "## Weights",
        "\n".join(weights),
        f"```json\n{json.dumps(dict(config), indent=1)}\n```",
        *(["## Use", f"```python\n{use}\n```", _LICENCE] if record.training else []),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(family: Family, form: str) -> str:
    if not family.training:  # not NVIDIA's, so no licence of theirs
        return "---\nlibrary_name: cosmos-pipelines\n---"
    return (
        "---\nlicense: other\nlicense_name: nvidia-open-model-license\n"
        f"library_name: {LIBRARIES.get(form, 'cosmos-pipelines')}\n"
        f"pipeline_tag: {family.hub_tag}\n---"
    )


def _origin(origin: Origin, source: str) -> Iterator[str]:
    manifest = origin.manifest
    yield f"Converted by cosmos-pipelines from `{source}`."
    if manifest is None:
        yield "What it was trained on is not recorded with these weights."
        return
    made = "trained" if manifest.kind == "training-run" else "fetched"
    yield f"It was {made} by the run `{manifest.address}` of stage `{manifest.stage}`."
    for line in _facts(manifest.summary):
        yield f"* {line}"
    if manifest.kind == "training-run":
        for line in _facts(manifest.config):
            yield f"* setting {line}"
    for name, parent in origin.inputs.items():
        yield f"* input **{name}** ({parent.kind}): `{parent.uri}`, content `{parent.content}`"
        for line in _facts(parent.summary):
            yield f"  * {line}"
    for name, uri in origin.unread.items():
        content = manifest.inputs[name].content
        yield f"* input **{name}**: `{uri}` (no longer there), content `{content}`"


def _facts(values: Mapping[str, Any]) -> Iterator[str]:
    """Scalars and short lists, as name: value."""
    for name, value in sorted(values.items()):
        if isinstance(value, bool | int | float | str) and value != "":
            yield f"{name}: {value}"
        elif isinstance(value, list | tuple | dict) and value and len(json.dumps(value)) <= 400:
            yield f"{name}: {json.dumps(value)}"
