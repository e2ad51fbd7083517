"""Which network are these weights? Settings from `config.json`, or from the nearest preset.

Weights tell sizes but not everything (rotary ratios, the tokenizer's window), so settings come
from a `config.json` of ours, else from the published network whose names and shapes agree best.
The strict check that follows names every difference, so a near miss is never loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from components.lib.contract import Frozen, UserError

OWN_KEY = "cosmos_pipelines"
Shapes = Mapping[str, tuple[int, ...]]
Config = TypeVar("Config", bound=Frozen)


def write_config(folder: Path, family: str, name: str, config: Mapping[str, Any]) -> None:
    """A `config.json` that says what the weights do not: which settings of ours fit them."""
    value = {OWN_KEY: {"family": family, "name": name, "config": dict(config)}}
    (folder / "config.json").write_text(json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty when there is no such file. Raises UserError for anything else."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object.")
    return value


def own_config(folder: Path, family: str, cls: type[Config]) -> tuple[str, Config] | None:
    """Name and settings that this project wrote beside weights in an official layout."""
    record = read_json(folder / "config.json").get(OWN_KEY)
    if not isinstance(record, dict) or record.get("family") != family:
        return None
    try:
        return str(record.get("name", "")), cls.model_validate(record.get("config", {}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{folder / 'config.json'}: {where}: {first['msg']}.") from error


def nearest_preset(shapes: Shapes, presets: Mapping[str, Shapes], where: str) -> str:
    """The preset with which most names and shapes agree. Raises UserError when few do."""

    def agreement(name: str) -> float:
        wanted = presets[name]
        equal = sum(1 for key, shape in wanted.items() if tuple(shapes.get(key, ())) == shape)
        return equal / max(len(wanted), len(shapes), 1)

    best = max(presets, key=agreement)
    if agreement(best) < 0.5:
        sample = ", ".join(list(shapes)[:3]) or "no tensors"
        raise UserError(
            f"{where} is none of the published networks ({', '.join(presets)}) and has no "
            f"config.json of cosmos-pipelines; it holds {len(shapes)} tensors ({sample}, …)."
        )
    return best
