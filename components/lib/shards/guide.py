"""The file layout of NVIDIA's post-training guide, written and read.

Four files per sample, numbered by a running counter: ``{i}.info.json``, ``{i}.video_latent.pth``
[16, T, H, W] bf16, ``{i}.t5_text_embeddings.pth`` [512, D] bf16 and ``{i}.t5_text_mask.pth`` [512]
bf16 ones. The guide's trainer reads them as they are. The price of compatibility: the prompt's
embedding is stored again with every sample, and the format is torch's zip archive, which is read
here with ``weights_only=True`` and never unpickled.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from components.lib.contract import UserError
from components.lib.shards.latents import ClipInfo

if TYPE_CHECKING:
    import torch

INFO = "info.json"
LATENT = "video_latent.pth"
EMBEDDING = "t5_text_embeddings.pth"
MASK = "t5_text_mask.pth"
PARTS = (INFO, EMBEDDING, MASK, LATENT)
TEXT_ROWS = 512


@dataclass(frozen=True)
class GuideSample:
    """One sample as the guide's trainer sees it."""

    index: int
    latent: torch.Tensor
    embedding: torch.Tensor
    mask: torch.Tensor
    info: dict[str, Any]


def guide_parts(
    index: int, latent: torch.Tensor, embedding: torch.Tensor, info: ClipInfo
) -> dict[str, bytes]:
    """File name -> bytes of sample ``index``.

    ``latent`` [C, T, H, W] and ``embedding`` [512, D] are stored as bf16. The same input gives the
    same bytes.
    """
    import torch

    if embedding.shape[0] != TEXT_ROWS or latent.dim() != 4:
        raise ValueError(
            f"expected a latent [C,T,H,W] and an embedding [{TEXT_ROWS},D], "
            f"got {tuple(latent.shape)} and {tuple(embedding.shape)}"
        )
    described = {
        "height": info.height,
        "width": info.width,
        "fps": float(info.fps),
        "num_frames": info.num_frames,
        "video_path": PurePosixPath(info.video).name,
        "start_frame": info.start_frame,
    }
    return {
        f"{index}.{INFO}": json.dumps(described).encode(),
        f"{index}.{EMBEDDING}": _save(embedding),
        f"{index}.{MASK}": _save(torch.ones(TEXT_ROWS)),
        f"{index}.{LATENT}": _save(latent),
    }


def list_guide_samples(names: Iterable[str]) -> list[int]:
    """Sample numbers among file names, in numeric order.

    Raises UserError when a sample lacks one of its four files.
    """
    parts_of: dict[int, set[str]] = {}
    for name in names:
        stem, _, part = PurePosixPath(name).name.partition(".")
        if stem.isdecimal() and part in PARTS:
            parts_of.setdefault(int(stem), set()).add(part)
    for number, parts in sorted(parts_of.items()):
        if missing := sorted(set(PARTS) - parts):
            raise UserError(
                f"Sample {number} of the guide layout has no file {number}.{missing[0]}."
            )
    return sorted(parts_of)


def read_guide_sample(folder: Path, index: int) -> GuideSample:
    """Read one sample from a folder. Raises UserError naming the file that is unusable."""
    info_path = folder / f"{index}.{INFO}"
    try:
        info = json.loads(info_path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{info_path} is not readable: {error}.") from error
    return GuideSample(
        index=index,
        latent=load_tensor(folder / f"{index}.{LATENT}"),
        embedding=load_tensor(folder / f"{index}.{EMBEDDING}"),
        mask=load_tensor(folder / f"{index}.{MASK}"),
        info=info,
    )


def iter_guide_samples(folder: Path) -> Iterator[GuideSample]:
    """Every sample of a folder in numeric order, one at a time."""
    for index in list_guide_samples(path.name for path in folder.iterdir()):
        yield read_guide_sample(folder, index)


def load_tensor(path: Path) -> torch.Tensor:
    """A tensor from a ``.pth`` file. Nothing but tensors is accepted."""
    return read_tensor(path, str(path))


def read_tensor(source: Path | io.BytesIO, name: str) -> torch.Tensor:
    """The same from a file or its bytes; ``name`` is what errors call it."""
    from pickle import UnpicklingError

    import torch

    try:
        value = torch.load(source, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{name} is not a tensor written by torch.save: {reason}") from error
    if not isinstance(value, torch.Tensor):
        raise UserError(f"{name} holds a {type(value).__name__}, not a tensor.")
    return value


def _save(tensor: torch.Tensor) -> bytes:
    import torch

    # A clone owns exactly its own storage: a saved view would carry the whole tensor behind it.
    buffer = io.BytesIO()
    torch.save(tensor.detach().to("cpu", torch.bfloat16).contiguous().clone(), buffer)
    return buffer.getvalue()
