"""`cosmos-pipelines describe MODEL`: what a model is and costs, without its weights."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer
from pydantic import ValidationError

from components.lib.contract import UserError
from components.lib.cosmos.describe import Clip, describe, find_model, render
from components.lib.cosmos.flops import EstimatedLayout
from components.lib.cosmos.shapes import state_shapes


class Checkpointing(StrEnum):
    """Which activations training recomputes."""

    none = "none"
    light = "light"
    selective = "selective"
    full = "full"


def command(
    model: Annotated[
        str,
        typer.Argument(help="7B, 14B, CV8x8x8, DV8x16x16, …, a published name, or a model folder."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    keys: Annotated[bool, typer.Option("--keys", help="Every tensor's name and shape.")] = False,
    frames: Annotated[int, typer.Option(help="Frames of the clip, 8k + 1.")] = 121,
    height: Annotated[int, typer.Option(help="Its height in pixels.")] = 704,
    width: Annotated[int, typer.Option(help="Its width in pixels.")] = 1280,
    gpus: Annotated[int, typer.Option(help="GPUs that train together.")] = 8,
    tp: Annotated[int, typer.Option(help="Tensor-parallel size.")] = 1,
    sequence_parallel: Annotated[
        bool, typer.Option("--sequence-parallel", help="Cut tokens over the TP group, too.")
    ] = False,
    checkpointing: Annotated[
        Checkpointing, typer.Option(help="Activation checkpointing.")
    ] = Checkpointing.selective,
) -> None:
    """Parameters, shapes, FLOPs and memory of a model, without its weights.

    Example: cosmos-pipelines describe 7B --gpus 8 --tp 8 --sequence-parallel
    """
    try:
        layout = EstimatedLayout(
            gpus=gpus, tp=tp, sequence_parallel=sequence_parallel, checkpointing=checkpointing.value
        )
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"This layout does not work: {reason}.") from error
    name, settings = find_model(model)
    facts = describe(name, settings, Clip(frames=frames, height=height, width=width), layout)
    shapes = state_shapes(settings) if keys else {}
    if as_json:
        typer.echo(json.dumps(facts | ({"keys": shapes} if keys else {}), indent=1))
        return
    typer.echo(render(facts))
    if keys:
        typer.echo("")
        for key, shape in shapes.items():
            typer.echo(f"{key} {tuple(shape)}")
