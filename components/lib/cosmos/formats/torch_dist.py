"""Reads tensors of torch's distributed checkpoints (`torch_dist`), chunk by chunk.

torch's own reader unpickles `.metadata` without limits. Here an unpickler that knows only the
handful of metadata types reads it, and each chunk goes through ``torch.load(weights_only=True)``,
so nothing in the folder can run code. Chunks are read when asked for, never the whole checkpoint.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.lib.contract import UserError

if TYPE_CHECKING:
    import torch

METADATA_NAME = ".metadata"
_DCP = "torch.distributed.checkpoint"
_ALLOWED = {
    f"{_DCP}.metadata": {
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "_MEM_FORMAT_ENCODING",
    },
    f"{_DCP}.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "collections": {"OrderedDict"},
}


class _Inert:
    """Stands for a class of another program; keeps nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _MetadataUnpickler(pickle.Unpickler):
    """Knows the metadata types of torch's distributed checkpoints and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if module == "torch":
            value = getattr(torch, name, None)
            if value is torch.Size or isinstance(value, torch.dtype):
                return value
        if name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        if module.split(".", maxsplit=1)[0] in ("megatron", "nemo"):
            return _Inert
        raise pickle.UnpicklingError(f"{module}.{name}")


class DistTensor:
    """One tensor of a distributed checkpoint."""

    def __init__(self, folder: Path, name: str, metadata: Any, places: Mapping[Any, Any]) -> None:
        self.folder, self.name, self.metadata, self.places = folder, name, metadata, places

    @property
    def shape(self) -> tuple[int, ...]:
        """Its whole shape."""
        return tuple(self.metadata.size)

    def read(self, first: tuple[int, int] | None = None) -> torch.Tensor:
        """The tensor, or a range of dimension 0. Raises UserError naming a chunk that is bad."""
        import torch

        start, stop = first or (0, self.shape[0] if self.shape else 1)
        shape = ((stop - start), *self.shape[1:]) if self.shape else ()
        out = torch.empty(shape, dtype=self.metadata.properties.dtype)
        covered = 0
        for chunk in self.metadata.chunks:
            offsets, sizes = list(chunk.offsets), list(chunk.sizes)
            if not offsets:
                return self._chunk(chunk)
            low, high = max(start, offsets[0]), min(stop, offsets[0] + sizes[0])
            if low >= high:
                continue
            piece = self._chunk(chunk)[low - offsets[0] : high - offsets[0]]
            window = [slice(low - start, high - start)]
            window += [
                slice(offset, offset + size)
                for offset, size in zip(offsets[1:], sizes[1:], strict=True)
            ]
            out[tuple(window)] = piece
            covered += piece.numel()
        if covered != out.numel():
            raise UserError(f"{self.folder}: '{self.name}' has parts missing.")
        return out

    def _chunk(self, chunk: Any) -> torch.Tensor:
        import torch

        place = self.places.get((self.name, tuple(chunk.offsets)))
        if place is None or Path(place.relative_path).name != place.relative_path:
            raise UserError(f"{self.folder}: '{self.name}' has a part with no place.")
        path = self.folder / place.relative_path
        try:
            with path.open("rb") as stream:
                stream.seek(place.offset)
                data = io.BytesIO(stream.read(place.length))
            tensor = torch.load(data, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise UserError(
                f"{path} does not hold the part of '{self.name}' at {place.offset}. Fetch it again."
            ) from error
        if tuple(tensor.shape) != tuple(chunk.sizes):
            raise UserError(f"{path}: a part of '{self.name}' has the wrong shape.")
        return tensor


def read_torch_dist(folder: Path) -> dict[str, DistTensor]:
    """Name -> tensor of every tensor in the checkpoint; other objects are left out."""
    path = folder / METADATA_NAME
    try:
        with path.open("rb") as stream:
            metadata = _MetadataUnpickler(stream).load()
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} names {error}, which no distributed checkpoint holds; it was not loaded."
        ) from error
    except (OSError, EOFError, AttributeError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{path} is not the metadata of a distributed checkpoint.") from error
    places = {}
    for index, place in metadata.storage_data.items():
        places[index.fqn, tuple(index.offset or ())] = place
    return {
        name: DistTensor(folder, name, entry, places)
        for name, entry in metadata.state_dict_metadata.items()
        if hasattr(entry, "chunks")
    }
