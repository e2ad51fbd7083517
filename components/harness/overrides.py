"""Overrides: ``stage.field=value`` for any stage, ``group.field=value`` for the trainer.

A field that is a mapping also takes its entries one by one: ``training.job.queue=training``.

A pipeline's form has few parameters; everything else goes through one list of overrides. Values
are YAML, so ``true``, ``3``, ``1e-4``, ``[a, b]`` and plain text mean what they look like.
Words before the first dot are either a stage's name or one of the trainer's config groups, which
are handed on to the training stage untouched. Names and values are checked before anything runs:
a slip in a trainer setting must not show after hours of encoding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, get_origin

from pydantic import TypeAdapter, ValidationError

from components.harness.stages import meant, stage_config, stage_names, stages_in_order
from components.lib.contract import StageConfig, UserError
from components.lib.settings import likeness, parse_value

TRAINER_GROUPS = ("model", "data", "trainer", "optim", "log", "resume")
_PATTERN = re.compile(r"^(?P<head>[A-Za-z_]\w*)\.(?P<field>[A-Za-z_][\w.]*)=(?P<value>.*)$", re.S)


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
        elif head not in stage_names():
            ending = meant(head, (*stages_in_order(), *TRAINER_GROUPS))
            raise UserError(f"The override '{override}' names no stage: '{head}'.{ending}")
        elif head == stage:
            known = stage_config(stage).model_fields
            outer, _, key = field.partition(".")
            if key and outer in known and get_origin(known[outer].annotation) is dict:
                fields[outer] = {**fields.get(outer, {}), key: parse_value(match["value"])}
                continue
            if field not in known:
                raise UserError(
                    f"Stage {stage} has no field '{field}' (in the override '{override}')."
                    f"{meant(field, known)}"
                )
            text = known[field].annotation is str
            fields[field] = match["value"] if text else parse_value(match["value"])
    if stage == "training" and trainer:
        fields["overrides"] = trainer
    return fields


def check_overrides(overrides: Sequence[str]) -> None:
    """Raise UserError for the first override that its stage or the trainer would not take."""
    for stage in stages_in_order():
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
            words = [override.partition("=")[0].strip() for override in overrides]
            fit = sum(likeness(word, names) for word in words)
            refusals.append((fit, error))
        else:
            return
    raise max(refusals, key=lambda refusal: refusal[0])[1]


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
        ending = meant(unknown[0], config.model_fields)
        raise UserError(f"Stage {stage} has no field '{unknown[0]}'.{ending}")
    try:
        return config.model_validate(values)
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        value = values.get(field, "nothing")
        raise UserError(_does_not_fit(stage, field, error, value)) from error


def _does_not_fit(stage: str, field: str, error: ValidationError, value: Any) -> str:
    return f"Stage {stage}, field '{field}': {error.errors()[0]['msg']}, got {value!r}."
