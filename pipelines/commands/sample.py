"""`cosmos-pipelines sample`: a video from a prompt."""

from __future__ import annotations

import tempfile
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from components.lib.contract import UserError

if TYPE_CHECKING:
    from components.lib.cosmos.diffusion.text_to_video import VideoRequest


class Solver(StrEnum):
    """How the noise is integrated away."""

    res = "res"
    euler = "euler"


def command(
    prompt: Annotated[str, typer.Argument(help="What the video shows.")],
    model: Annotated[
        str,
        typer.Option(
            help="Diffusion model: a folder, or the manifest.json (path or s3://…) of a fetch or a "
            "training run."
        ),
    ],
    tokenizer: Annotated[str, typer.Option(help="CV8x8x8 tokenizer, likewise.")],
    t5: Annotated[str | None, typer.Option(help="T5 text encoder, likewise.")] = None,
    embedding: Annotated[
        Path | None, typer.Option(help="A stored prompt embedding, in place of --t5.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The MP4 to write.")] = Path(
        "sample.mp4"
    ),
    negative_prompt: Annotated[str, typer.Option(help="What to stay away from.")] = "",
    subject: Annotated[
        str, typer.Option(help="Puts 'A video of sks SUBJECT.' before the prompt.")
    ] = "",
    frames: Annotated[int, typer.Option(help="Frames, 8k + 1.")] = 121,
    height: Annotated[int, typer.Option(help="Pixels, a multiple of 16.")] = 704,
    width: Annotated[int, typer.Option(help="Pixels, a multiple of 16.")] = 1280,
    fps: Annotated[float, typer.Option(help="Frame rate, made and played.")] = 24.0,
    solver: Annotated[Solver, typer.Option(help="res: second order. euler: EDM Euler.")] = (
        Solver.res
    ),
    steps: Annotated[int, typer.Option(help="Steps of the solver.")] = 35,
    guidance: Annotated[float, typer.Option(help="g in cond + g (cond - uncond).")] = 7.0,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal videos.")] = 1,
    tile: Annotated[
        int | None, typer.Option(help="Decode in tiles of this many pixels to save memory.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …; auto: a GPU if any.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="bfloat16 or float32; auto: bfloat16 on a GPU.")
    ] = "auto",
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Compile the blocks: slower to start, then faster. Default: large models on GPUs.",
            show_default=False,
        ),
    ] = None,
    ema: Annotated[
        bool, typer.Option("--ema", help="Of a training run, take the averaged weights.")
    ] = False,
) -> None:
    """Make a video from a prompt with a Text2World model and write it as MP4.

    The text encoder, the diffusion model and the tokenizer are loaded one after the other, so
    that each has the memory for itself.

    Example: cosmos-pipelines sample "a rainy road" --model dit --tokenizer cv8x8x8 --t5 t5-11b
    """
    if (t5 is None) == (embedding is None):
        raise UserError("Give either --t5, the text encoder, or --embedding, a stored embedding.")
    settings = {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "subject": subject,
        "frames": frames,
        "height": height,
        "width": width,
        "fps": fps,
        "sampling": {"solver": solver.value, "steps": steps, "guidance": guidance, "seed": seed},
    }
    request = parse_request(settings)
    place, kind = choose_device(device, dtype)
    from components.lib.cosmos.diffusion.text import TextEncoder
    from components.lib.cosmos.diffusion.text_to_video import StoredEmbedding, make_video
    from components.lib.cosmos.dit.network import DiT
    from components.lib.cosmos.inference import speed_up_dit
    from components.lib.cosmos.model_folder import load_dit, load_tokenizer
    from components.lib.progress import default_progress
    from components.lib.video.encode import write_mp4

    progress = default_progress()
    with tempfile.TemporaryDirectory(prefix="cosmos-sample-") as scratch:

        def fetch(source: str, part: str, prefix: str = "model/") -> Path:
            return model_folder(source, Path(scratch) / part, prefix)

        def load_text() -> Any:
            if embedding is not None:
                return StoredEmbedding(embedding)
            return TextEncoder(fetch(str(t5), "t5"), place, kind)

        def load_model() -> DiT:
            dit = load_dit(fetch(model, "dit", "model_ema/" if ema else "model/"), place, kind)
            progress.log(speed_up_dit(dit, compiled))
            return dit

        frames_made = make_video(
            request,
            load_text=load_text,
            load_model=load_model,
            load_tokenizer=lambda: load_tokenizer(fetch(tokenizer, "tokenizer"), "cpu", kind),
            progress=progress,
            tile=tile,
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(output, frames_made, request.fps)
    typer.echo(str(output))


def parse_request(settings: dict[str, Any]) -> VideoRequest:
    """The request of the options; UserError names the option that is wrong."""
    from components.lib.cosmos.diffusion.text_to_video import VideoRequest

    try:
        return VideoRequest.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"--{where.removeprefix('sampling.')}: {first['msg']}.") from error


def model_folder(source: str, scratch: Path, prefix: str = "model/") -> Path:
    """A folder as it is; of a manifest, the files under ``prefix``, downloaded to ``scratch``."""
    if not source.endswith("manifest.json"):
        return Path(source)
    from components.lib.cosmos.model_folder import download_model
    from components.lib.manifest import load_manifest
    from components.lib.store import ObjectStore

    store = ObjectStore.from_env()
    return download_model(load_manifest(source, store), store, scratch, prefix)


def choose_device(device: str, dtype: str) -> tuple[str, Any]:
    """Device name and torch dtype for the words of the command line."""
    import torch

    kinds = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("There is no CUDA device here; use --device cpu.")
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    if dtype not in kinds:
        raise UserError(f"--dtype must be one of {', '.join(kinds)} or auto, not '{dtype}'.")
    return device, kinds[dtype]
