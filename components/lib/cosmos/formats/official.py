"""NVIDIA's native `model.pt` and the small files that lie beside the networks.

`model.pt` is a zip of tensors under `net.*` names. It is read with ``weights_only=True``, which
runs no code from the file, and memory-mapped, so that a 28 GB file costs only the pages in use.
"""

from __future__ import annotations

import pickle  # only for the name of the exception that torch.load raises
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.lib.contract import UserError

if TYPE_CHECKING:
    import torch

PREFIX = "net."
MODEL_NAME = "model.pt"
MEAN_STD_NAME = "mean_std.pt"
IMAGE_MEAN_STD_NAME = "image_mean_std.pt"


def load_pt(path: Path) -> Any:
    """The object in a ``torch.save`` file, on the CPU, memory-mapped when the file allows it.

    Raises UserError for a damaged file and for one that holds more than tensors and containers.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors, so loading it would run code from the file; it was "
            "not loaded. Convert it to safetensors where it came from."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a complete torch file ({_first_line(error)}). Fetch it again."
        ) from error


def _is_zip(path: Path) -> bool:
    with Path(path).open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def read_model_pt(path: Path) -> dict[str, torch.Tensor]:
    """Official names without ``net.`` -> tensors (mapped, not read).

    Raises UserError when an entry is not a tensor or is stored as a transposed view: no published
    file has such a view, and a square matrix shows a transposition in no other way.
    """
    import torch

    value = load_pt(path)
    if isinstance(value, Mapping) and isinstance(value.get("model"), Mapping):
        value = value["model"]
    if not isinstance(value, Mapping):
        raise UserError(f"{path} holds a {type(value).__name__}, not a dictionary of weights.")
    weights: dict[str, torch.Tensor] = {}
    for key, tensor in value.items():
        if str(key).endswith("_extra_state"):
            continue
        if not isinstance(tensor, torch.Tensor):
            raise UserError(f"{path}: the entry '{key}' is no tensor.")
        if not tensor.is_contiguous():
            raise UserError(
                f"{path}: '{key}' is stored as a transposed view. Save it with "
                "tensor.contiguous() if it is meant as it is, or undo the transposition."
            )
        weights[str(key).removeprefix(PREFIX)] = tensor
    return weights


def write_model_pt(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Write ``weights`` under ``net.*`` (``logvar.*`` keeps its place outside), atomically."""
    import torch

    named = {key if key.startswith("logvar.") else PREFIX + key: weights[key] for key in weights}
    temporary = path.with_name(path.name + ".partial")
    torch.save(named, temporary)
    temporary.replace(path)


def read_mean_std(path: Path, channels: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, std) of `mean_std.pt`, fp32 [channels, columns]; further columns are cut off."""
    import torch

    value = load_pt(path)
    tables = []
    for table in value if isinstance(value, tuple | list) and len(value) == 2 else ():
        if isinstance(table, torch.Tensor) and table.numel() % channels == 0:
            flat = table.reshape(channels, -1).float()
            if flat.shape[1] >= columns:
                tables.append(flat[:, :columns].clone())
    if len(tables) != 2:
        raise UserError(
            f"{path} is not a pair of mean and standard deviation with {channels} channels and at "
            f"least {columns} latent frames."
        )
    return tables[0], tables[1]


def write_mean_std(folder: Path, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Write `mean_std.pt` [channels · columns] and `image_mean_std.pt` (the first column)."""
    import torch

    torch.save((mean.flatten().clone(), std.flatten().clone()), folder / MEAN_STD_NAME)
    torch.save((mean[:, 0].clone(), std[:, 0].clone()), folder / IMAGE_MEAN_STD_NAME)
