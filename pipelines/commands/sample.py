"""`cosmos-pipelines sample`: a video from a prompt."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from components.lib.contract import UserError


class Solver(StrEnum):
    """How the noise is integrated away."""

    res = "res"
    euler = "euler"


def command(
    prompt: Annotated[str, typer.Argument(help="What the video shows.")],
    model: Annotated[Path, typer.Option(help="Folder of the diffusion model.")],
    tokenizer: Annotated[Path, typer.Option(help="Folder of the CV8x8x8 tokenizer.")],
    t5: Annotated[Path | None, typer.Option(help="Folder of the T5 text encoder.")] = None,
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
    written = write_sample(settings, model, tokenizer, t5, embedding, output, tile, device, dtype)
    typer.echo(str(written))


def write_sample(
    settings: dict[str, Any],
    model: Path,
    tokenizer: Path,
    t5: Path | None,
    embedding: Path | None,
    output: Path,
    tile: int | None,
    device: str,
    dtype: str,
) -> Path:
    """Sample and encode; returns the path of the MP4."""
    from components.lib.cosmos.model_folder import load_dit, load_tokenizer
    from components.lib.cosmos.text import TextEncoder
    from components.lib.cosmos.text_to_video import StoredEmbedding, VideoRequest, make_video
    from components.lib.progress import default_progress
    from components.lib.video.encode import write_mp4

    try:
        request = VideoRequest.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"--{where.removeprefix('sampling.')}: {first['msg']}.") from error
    place, kind = choose_device(device, dtype)

    def load_text() -> Any:
        if embedding is not None:
            return StoredEmbedding(embedding)
        assert t5 is not None
        return TextEncoder(t5, place, kind)

    video = make_video(
        request,
        load_text=load_text,
        load_model=lambda: load_dit(model, place, kind),
        load_tokenizer=lambda: load_tokenizer(tokenizer, "cpu", kind),
        progress=default_progress(),
        tile=tile,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(output, video, request.fps)
    return output


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
