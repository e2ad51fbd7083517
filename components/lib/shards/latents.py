"""One sample of the latent data set: the latent as safetensors and what it shows as JSON.

In a tar a sample is ``KEY.safetensors`` and ``KEY.json``, a layout that webdataset and
megatron-energon read without help. The prompt's embedding is not in the sample: it is stored once
per distinct prompt, and `ClipInfo.prompt_sha256` names its file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from components.lib.contract import Frozen, UserError
from components.lib.manifest import canonical_json

if TYPE_CHECKING:
    import torch

LATENT_EXT = "safetensors"
INFO_EXT = "json"
TENSOR_NAME = "latent"


class ClipInfo(Frozen):
    """Which frames of which video a latent holds, and how they were brought to size.

    ``height`` and ``width`` are the source's as shown (rotation applied), in pixels;
    ``clip_height`` and ``clip_width`` are what was encoded. ``fps`` is the clip's rate,
    ``source_fps`` the file's mean. ``start`` counts frames at the clip's rate and ``start_frame``
    the file's own; they differ only when frames were repeated or dropped to reach ``fps``.
    """

    video: str
    video_sha256: str
    prompt: str | None
    prompt_sha256: str | None
    start: int
    start_frame: int
    num_frames: int
    fps: float
    source_fps: float
    height: int
    width: int
    clip_height: int
    clip_width: int
    resize: Literal["crop", "pad", "stretch"]
    split: Literal["train", "validation"] = "train"
    drive: str | None = None


def prompt_digest(prompt: str) -> str:
    """sha256 of the prompt's UTF-8 bytes: the name of its embedding's file."""
    return hashlib.sha256(prompt.encode()).hexdigest()


def latent_parts(latent: torch.Tensor, info: ClipInfo) -> dict[str, bytes]:
    """The files of one sample, by extension. ``latent`` is [C, T, H, W]; bf16 stays bf16."""
    from safetensors.torch import save

    if latent.dim() != 4:
        raise ValueError(f"a latent has 4 dimensions, got shape {tuple(latent.shape)}")
    # One tensor and no metadata: safetensors orders metadata by hash, which differs by run.
    return {
        INFO_EXT: canonical_json(info.model_dump(mode="json")),
        LATENT_EXT: save({TENSOR_NAME: latent.detach().cpu().contiguous()}),
    }


def parse_latent(
    parts: Mapping[str, bytes], name: str = "the sample"
) -> tuple[torch.Tensor, ClipInfo]:
    """Latent [C, T, H, W] and info from one sample's files. ``name`` appears in errors."""
    if missing := {INFO_EXT, LATENT_EXT} - set(parts):
        raise UserError(
            f"{name} has no .{min(missing)} part. The shard was not written by latent_encoding."
        )
    return parse_tensor(parts[LATENT_EXT], name), parse_info(parts[INFO_EXT], name)


def parse_tensor(data: bytes, name: str) -> torch.Tensor:
    """The latent alone."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)[TENSOR_NAME]
    except (SafetensorError, KeyError) as error:
        raise UserError(f"The latent of {name} is not readable: {error}.") from error


def parse_info(data: bytes, name: str) -> ClipInfo:
    """The info alone."""
    try:
        return ClipInfo.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"The info of {name} is not readable: {where}: {first['msg']}.") from error
