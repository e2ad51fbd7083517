"""Dotted overrides (`trainer.max_steps=1000`) on a typed config, with errors that help.

The value is read as YAML, so `true`, `1e-6`, `[to_q, to_v]` and plain words all do what they look
like, and pydantic has the last word about types. An unknown name is answered with the nearest
valid one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from components.lib.contract import UserError
from components.lib.train.settings.config import TrainConfig

ConfigT = TypeVar("ConfigT", bound=TrainConfig)


def iter_fields(model: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, FieldInfo, value) of every leaf field, in declaration order."""
    for name, info in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from iter_fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, info, value


def apply_overrides(config: ConfigT, overrides: Iterable[str]) -> ConfigT:
    """A new config of the same class with ``name=value`` overrides applied in order.

    Raises UserError for a missing ``=``, an unknown name (with the nearest valid one) and a value
    of the wrong type.
    """
    names = [name for name, _, _ in iter_fields(config) if name != "task"]
    values = config.model_dump()
    given: dict[str, str] = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        name = name.strip()
        if not equals:
            raise UserError(
                f"'{override}' is not an override. Write name=value, such as trainer.max_steps=10."
            )
        if name not in names:
            raise UserError(f"There is no setting '{name}'. {_suggest(name, names)}")
        target = values
        *groups, leaf = name.split(".")
        for group in groups:
            target = target[group]
        target[leaf] = _parse(text)
        given[name] = text
    try:
        return type(config).model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error, given)) from error


def _parse(text: str) -> Any:
    """YAML, except that numbers such as 1e-6 (a string in YAML 1.1) are numbers."""
    text = text.strip()
    if text.startswith("s3://") or text == "":
        return text
    try:
        return float(text) if "e" in text.lower() and ":" not in text else yaml.safe_load(text)
    except ValueError:
        pass
    except yaml.YAMLError:
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _suggest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if not close:
        leaf = name.rsplit(".", 1)[-1]
        leaves = {known.rsplit(".", 1)[-1]: known for known in names}
        close = [leaves[found] for found in difflib.get_close_matches(leaf, leaves, n=1)]
    if close:
        return f"Did you mean '{close[0]}'?"
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
    return f"The nearest is '{nearest}'; --help lists all settings."


def _explain(error: ValidationError, given: dict[str, str]) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    shown = f"{name}={given[name]}" if name in given else name
    return f"'{shown}' does not fit: {first['msg']}. --help says what {name} means."


def describe(config: TrainConfig) -> str:
    """Every field with its type, default and meaning: what ``--help`` prints."""
    lines = []
    for name, info, value in iter_fields(config):
        if name == "task":
            continue
        lines.append(f"  {name} = {_show(value)}  ({_type_name(info.annotation)})")
        lines.append(f"      {info.description}")
    return "\n".join(lines)


def _show(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(str(item) for item in value) + "]"
    return str(value)


def _type_name(annotation: Any) -> str:
    choices = get_args(annotation)
    if choices and all(isinstance(choice, str) for choice in choices):
        return " | ".join(choices)
    if choices:
        return "list"
    return str(getattr(annotation, "__name__", annotation))
