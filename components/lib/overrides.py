"""Overrides: ``stage.field=value`` for any stage, ``group.field=value`` for the trainer.

A pipeline's form has few parameters; everything else goes through one list of overrides. Values
are YAML, so ``true``, ``3``, ``1e-4``, ``[a, b]`` and plain text mean what they look like.
Words before the first dot are either a stage's name or one of the trainer's config groups, which
are handed on to the training stage untouched. All of them are checked before anything runs.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import ValidationError

from components.lib.contract import StageConfig, UserError

STAGES = (
    "checkpoint_fetch",
    "video_discovery",
    "tar_sharding",
    "prompt_embedding",
    "latent_encoding",
    "training",
    "evaluation",
    "promotion",
)
TRAINER_GROUPS = ("model", "data", "trainer", "optim", "log", "resume")
_PATTERN = re.compile(r"^(?P<head>[A-Za-z_]\w*)\.(?P<field>[A-Za-z_][\w.]*)=(?P<value>.*)$", re.S)


def stage_config(name: str) -> type[StageConfig]:
    """The config class of a stage. Raises UserError naming the nearest stage."""
    if name not in STAGES:
        raise UserError(f"There is no stage '{name}'.{_nearest(name, STAGES)}")
    config: type[StageConfig] = importlib.import_module(f"components.{name}.stage").CONFIG
    return config


def parse_value(text: str) -> Any:
    """A YAML value. ``1e-4``, which YAML 1.1 calls text, is read as the number it is."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"The value '{text}' is not valid YAML: {error}") from error
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def stage_overrides(stage: str, overrides: Iterable[str]) -> dict[str, Any]:
    """The fields that ``overrides`` set for one stage.

    The training stage also gets the trainer's overrides, as its list ``overrides``.
    """
    fields: dict[str, Any] = {}
    trainer: list[str] = []
    for override in overrides:
        match = _PATTERN.match(override)
        if match is None:
            raise UserError(
                f"The override '{override}' is not of the form stage.field=value, for example "
                "latent_encoding.chunks_per_video=20 or trainer.max_steps=1000."
            )
        head, field = match["head"], match["field"]
        if head in TRAINER_GROUPS:
            trainer.append(override)
        elif head not in STAGES:
            nearest = _nearest(head, (*STAGES, *TRAINER_GROUPS))
            raise UserError(f"The override '{override}' names no stage: '{head}'.{nearest}")
        elif head == stage:
            known = stage_config(stage).model_fields
            if field not in known:
                raise UserError(
                    f"Stage {stage} has no field '{field}' (in the override '{override}')."
                    f"{_nearest(field, known)}"
                )
            text = known[field].annotation is str
            fields[field] = match["value"] if text else parse_value(match["value"])
    if stage == "training" and trainer:
        fields["overrides"] = trainer
    return fields


def check_overrides(overrides: Sequence[str]) -> None:
    """Raise UserError for the first override that no stage would take."""
    for stage in STAGES:
        stage_overrides(stage, overrides)


def make_config(stage: str, values: dict[str, Any], overrides: Sequence[str] = ()) -> StageConfig:
    """Validated config of a stage. Raises UserError naming the field that does not fit."""
    config = stage_config(stage)
    extra = stage_overrides(stage, overrides)
    trainer = [*values.get("overrides", []), *extra.pop("overrides", [])]
    values = {**values, **extra}
    if trainer:
        values["overrides"] = trainer
    unknown = [name for name in values if name not in config.model_fields]
    if unknown:
        nearest = _nearest(unknown[0], config.model_fields)
        raise UserError(f"Stage {stage} has no field '{unknown[0]}'.{nearest}")
    try:
        return config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        given = values.get(field, "nothing")
        raise UserError(
            f"Stage {stage}, field '{field}': {first['msg']}, got {given!r}."
        ) from error


def _nearest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else f" There are: {', '.join(known)}."
