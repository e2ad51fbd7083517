"""The form of a pipeline: what a person may fill in, as fields of a frozen class.

KFP reads a pipeline's parameters from a function: names, types and defaults from its signature, the
help of each from its docstring. Pipelines that share parameters would have to repeat all three. So
a form is a class whose fields carry name, type, default and help, forms inherit from one another,
and `pipeline` shows KFP a function that looks as if it had been written out. The tasks get the form
itself, so that a type checker knows its fields; while KFP builds the graph, a field's value is the
placeholder of what will be filled in.

A new parameter of a pipeline is one field of its form and its use in the function that makes the
tasks, both in one file; the pipeline that retrains inherits both, and `make compile` writes the
YAML. `catalog.tiny_preset` is the second file where tiny models need another value.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import Field

from components.lib.contract import Frozen

STORAGE_ROOT = "s3://cosmos/runs"
Filled = TypeVar("Filled", bound="Form")


class Form(Frozen):
    """What every pipeline asks for. Fields without a default or a help get theirs in each."""

    videos: str = Field(
        description="Where the videos are: s3://bucket/prefix, hf://datasets/owner/name, or a "
        "folder."
    )
    storage_root: str = Field(STORAGE_ROOT, description="Where outputs go, as s3://bucket/prefix.")
    checkpoint: str
    factory: str
    launcher: str = Field(
        "pytorchjob",
        description="pytorchjob, trainjob, or process (torchrun inside the step).",
    )
    model_name: str
    overrides: list[str] = Field(
        [],
        description="Anything else: stage.field=value, or trainer.max_steps=…, optim.config.lr=…",
    )


class Retraining(Frozen):
    """What the scheduled pipelines ask for besides."""

    videos: str = Field(
        description="Where the fleet puts its videos: s3://bucket/prefix (or a folder)."
    )
    min_new_videos: int = Field(
        20, description="With fewer new videos the run ends at once, green, and says so."
    )
    old_per_new: float = Field(
        0.5, description="Old training videos to mix in for each new one, against forgetting."
    )


def pipeline(
    name: str, description: str, form: type[Filled], make_tasks: Callable[[Filled], None]
) -> Any:
    """The KFP pipeline that asks for the fields of ``form`` and consists of ``make_tasks``."""
    from kfp import dsl

    # kfp passes placeholders by position, in the order of the signature
    def graph(*placeholders: Any) -> None:
        fields = dict(zip(form.model_fields, placeholders, strict=True))
        make_tasks(form.model_construct(**fields))

    helps = [f"    {field}: {info.description}" for field, info in form.model_fields.items()]
    graph.__doc__ = "\n".join([description, "", "Args:", *helps])
    graph.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                field,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=info.annotation,
                default=inspect.Parameter.empty if info.is_required() else info.default,
            )
            for field, info in form.model_fields.items()
        ],
        return_annotation=None,
    )
    return dsl.pipeline(name=name, description=description)(graph)
