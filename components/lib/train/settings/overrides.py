"""Dotted overrides (`trainer.max_steps=1000`) on a typed config, with errors that help.

The value is read as YAML, so `true`, `1e-6`, `[to_q, to_v]` and plain words all do what they look
like, and pydantic has the last word about types. An unknown name is answered with the nearest
valid one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from components.lib.contract import UserError
from components.lib.settings import nearest, parse_value
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
    kinds = {name: info.annotation for name, info, _ in iter_fields(config) if name != "task"}
    values = config.model_dump()
    texts: dict[str, str] = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        name = name.strip()
        if not equals:
            raise UserError(
                f"'{override}' is not an override. Write name=value, such as trainer.max_steps=10."
            )
        if name not in kinds:
            raise UserError(f"There is no setting '{name}'. {_suggest(name, list(kinds))}")
        target = values
        *groups, leaf = name.split(".")
        for group in groups:
            target = target[group]
        target[leaf] = parse_value(text, kinds[name])
        texts[name] = text
    try:
        return type(config).model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error, texts)) from error


def _suggest(name: str, names: list[str]) -> str:
    leaves = {known.rsplit(".", 1)[-1]: known for known in names}
    leaf = nearest(name.rsplit(".", 1)[-1], leaves, cutoff=0.6)
    close = nearest(name, names) or (leaves[leaf] if leaf else None)
    if close:
        return f"Did you mean '{close}'?"
    return f"The nearest is '{nearest(name, names, cutoff=0.0)}'; --help lists all settings."


def _explain(error: ValidationError, texts: dict[str, str]) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    shown = f"{name}={texts[name]}" if name in texts else name
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
