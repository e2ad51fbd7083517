"""`cosmos-pipelines compile`: the YAML for the KFP UI and SDK."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Annotated

import typer

from components.lib.contract import UserError
from pipelines.catalog import COMPILED, ENCODING, PIPELINES

EncodePods = Annotated[
    int, typer.Option("--encode-pods", help="Pods that share the encoding of latents.", min=1)
]


def command(
    names: Annotated[
        list[str] | None, typer.Argument(help="Pipelines to compile (default: all).")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the YAML.")] = COMPILED,
    image: Annotated[
        list[str] | None,
        typer.Option(
            "--image", help="data|preprocess|train=reference; pin releases by digest. Repeatable."
        ),
    ] = None,
    gpu_type: Annotated[
        str | None,
        typer.Option(help="Only nodes whose label nvidia.com/gpu.product has this value."),
    ] = None,
    encode_pods: EncodePods = 1,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail when a file is stale.")
    ] = False,
) -> None:
    """Compile the pipelines to YAML, or check that the committed files are up to date."""
    selected = names or list(PIPELINES)
    stale = []
    for name in selected:
        pods = encode_pods if names or name in ENCODING else 1
        text = compile_pipeline(name, image_overrides(image or []), gpu_type, pods)
        target = output / f"{name}.yaml"
        if check:
            if not target.is_file() or target.read_text() != text:
                stale.append(str(target))
            continue
        output.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        typer.echo(f"wrote {target}")
    if stale:
        raise UserError(
            f"Out of date: {', '.join(stale)}. "
            "Run 'cosmos-pipelines compile' and commit the result."
        )
    if check:
        typer.echo(f"{len(selected)} compiled pipelines are up to date.")


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


def compile_pipeline(
    name: str,
    images: dict[str, str] | None = None,
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
