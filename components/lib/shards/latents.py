"""One sample of the latent data set: the latent as safetensors and what it shows as JSON.

In a tar a sample is ``KEY.safetensors`` and ``KEY.json``, a layout that webdataset and
megatron-energon read without help. Beside the latent the first may hold what a model is shown with
it (`components.lib.cosmos.conditions`), each input under its name and without a batch. The prompt's
embedding is not in the sample: it is stored once per distinct prompt, and `ClipInfo.prompt_sha256`
names its file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

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


class LatentSample(NamedTuple):
    """A latent [C, T, H, W], what it shows, and the inputs stored with it by their names."""

    latent: torch.Tensor
    info: ClipInfo
    conditions: dict[str, torch.Tensor]


def latent_parts(
    latent: torch.Tensor, info: ClipInfo, conditions: Mapping[str, torch.Tensor] | None = None
) -> dict[str, bytes]:
    """The files of one sample, by extension. ``latent`` is [C, T, H, W]; dtypes stay."""
    from safetensors.torch import save

    if latent.dim() != 4:
        raise ValueError(f"a latent has 4 dimensions, got shape {tuple(latent.shape)}")
    tensors = {TENSOR_NAME: latent, **(conditions or {})}
    # No metadata: safetensors orders it by hash, which differs by run. Tensors it orders by name.
    return {
        INFO_EXT: canonical_json(info.model_dump(mode="json")),
        LATENT_EXT: save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}),
    }


def parse_latent(parts: Mapping[str, bytes], name: str = "the sample") -> LatentSample:
    """A sample from its files. ``name`` appears in errors."""
    if missing := {INFO_EXT, LATENT_EXT} - set(parts):
        raise UserError(
            f"{name} has no .{min(missing)} part. The shard was not written by latent_encoding."
        )
    tensors = parse_tensors(parts[LATENT_EXT], name)
    return LatentSample(tensors.pop(TENSOR_NAME), parse_info(parts[INFO_EXT], name), tensors)


def parse_tensors(data: bytes, name: str) -> dict[str, torch.Tensor]:
    """The latent and what is stored with it. UserError without a latent."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
    except SafetensorError as error:
        raise UserError(f"The latent of {name} is not readable: {error}.") from error
    if TENSOR_NAME not in tensors:
        raise UserError(f"The latent of {name} is not readable: there is no '{TENSOR_NAME}'.")
    return dict(tensors)


def parse_info(data: bytes, name: str) -> ClipInfo:
    """The info alone."""
    try:
        return ClipInfo.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"The info of {name} is not readable: {where}: {first['msg']}.") from error
