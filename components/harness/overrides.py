"""Overrides: ``stage.field=value`` for any stage, ``group.field=value`` for the trainer.

A field that is a mapping also takes its entries one by one: ``training.job.queue=training``.

A pipeline's form has few parameters; everything else goes through one list of overrides. Values
are YAML, so ``true``, ``3``, ``1e-4``, ``[a, b]`` and plain text mean what they look like.
Words before the first dot are either a stage's name or one of the trainer's config groups, which
are handed on to the training stage untouched. Names and values are checked before anything runs:
a slip in a trainer setting must not show after hours of encoding.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, get_origin

from pydantic import TypeAdapter, ValidationError

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
    config: type[StageConfig] = importlib.import_module(f"components.{name}.config").CONFIG
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
            outer, _, key = field.partition(".")
            if key and outer in known and get_origin(known[outer].annotation) is dict:
                fields[outer] = {**fields.get(outer, {}), key: parse_value(match["value"])}
                continue
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
    """Raise UserError for the first override that its stage or the trainer would not take."""
    for stage in STAGES:
        fields = stage_overrides(stage, overrides)
        trainer = fields.pop("overrides", []) if stage == "training" else []
        known = stage_config(stage).model_fields
        for name, value in fields.items():
            kind: Any = Annotated[known[name].annotation, known[name]]
            try:
                TypeAdapter(kind).validate_python(value)
            except ValidationError as error:
                raise UserError(_does_not_fit(stage, name, error, value)) from error
        if trainer:
            _check_trainer(trainer)


def _check_trainer(overrides: Sequence[str]) -> None:
    """Which recipe they are for is not known here, so one of the families must take them."""
    from components.lib.train.settings.overrides import apply_overrides, iter_fields
    from components.lib.train.settings.recipes import recipes

    refusals = []
    for kind in dict.fromkeys(type(recipe()) for recipe in recipes().values()):
        config = kind.model_validate({})
        try:
            apply_overrides(config, overrides)
        except UserError as error:
            names = [name for name, _, _ in iter_fields(config)]
            given = [override.partition("=")[0].strip() for override in overrides]
            likeness = sum(_likeness(name, names) for name in given)
            refusals.append((likeness, error))
        else:
            return
    raise max(refusals, key=lambda refusal: refusal[0])[1]


def _likeness(word: str, known: Iterable[str]) -> float:
    return max(difflib.SequenceMatcher(None, word, name).ratio() for name in known)


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
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        given = values.get(field, "nothing")
        raise UserError(_does_not_fit(stage, field, error, given)) from error


def _does_not_fit(stage: str, field: str, error: ValidationError, given: Any) -> str:
    return f"Stage {stage}, field '{field}': {error.errors()[0]['msg']}, got {given!r}."


def _nearest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else f" There are: {', '.join(known)}."
