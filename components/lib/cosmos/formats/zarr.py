"""Reads arrays of the zarr format, version 2, as Megatron and tensorstore write them.

A directory per array: `.zarray` (JSON) tells shape, chunk shape, dtype, compressor and byte order;
each chunk is a file named by its grid position. Only what checkpoints use is read: C or F order,
no filters, the dtypes below (``bfloat16`` is tensorstore's extension), no compressor or zlib,
gzip, bz2, and lzma, with zstd, lz4 and blosc when the package numcodecs is installed. Nothing is
unpickled. A chunk that is not there is an error unless the array declares a fill value.
"""

from __future__ import annotations

import bz2
import gzip
import importlib
import itertools
import json
import lzma
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ValidationError

from components.lib.contract import UserError

if TYPE_CHECKING:
    import torch

METADATA_NAME = ".zarray"
# dtype in the file -> (numpy dtype of the bytes, name of the torch dtype)
_DTYPES = {
    "bfloat16": ("<u2", "bfloat16"),
    "<f2": ("<f2", "float16"),
    "<f4": ("<f4", "float32"),
    "<f8": ("<f8", "float64"),
    "|u1": ("|u1", "uint8"),
    "|i1": ("|i1", "int8"),
    "<i2": ("<i2", "int16"),
    "<i4": ("<i4", "int32"),
    "<i8": ("<i8", "int64"),
    "|b1": ("|b1", "bool"),
}
_STANDARD: dict[str, Callable[[bytes], bytes]] = {
    "zlib": zlib.decompress,
    "gzip": gzip.decompress,
    "bz2": bz2.decompress,
    "lzma": lzma.decompress,
}


class _Metadata(BaseModel):
    zarr_format: int
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: Any
    compressor: dict[str, Any] | None = None
    fill_value: Any = None
    order: str = "C"
    filters: list[Any] | None = None
    dimension_separator: str = "."


class ZarrArray:
    """One array. ``shape`` and ``dtype`` (torch's name) are known without reading chunks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._meta = _read_metadata(folder)
        self.shape = self._meta.shape
        self._bytes, self.dtype = _DTYPES[self._meta.dtype]

    def read(self, first: tuple[int, int] | None = None) -> torch.Tensor:
        """The tensor, or rows ``first[0]`` to ``first[1]`` of dimension 0.

        Only the chunks that overlap are read. Raises UserError naming a missing or damaged chunk.
        """
        import torch

        meta = self._meta
        window = [(0, size) for size in meta.shape]
        if first is not None:
            window[0] = first
        out = np.empty([stop - start for start, stop in window], dtype=self._bytes)
        grid = [
            range(start // chunk, -(-stop // chunk))
            for (start, stop), chunk in zip(window, meta.chunks, strict=True)
        ]
        for position in itertools.product(*grid):
            self._place(out, window, position)
        return torch.from_numpy(_native(out)).view(getattr(torch, self.dtype))

    def _place(
        self, out: np.ndarray, window: list[tuple[int, int]], position: tuple[int, ...]
    ) -> None:
        """Copy the part of a chunk that lies in the window."""
        chunks = self._meta.chunks
        source, target = [], []
        for (start, stop), number, size in zip(window, position, chunks, strict=True):
            low, high = max(start, number * size), min(stop, (number + 1) * size)
            source.append(slice(low - number * size, high - number * size))
            target.append(slice(low - start, high - start))
        out[tuple(target)] = self._chunk(position)[tuple(source)]

    def _chunk(self, position: tuple[int, ...]) -> np.ndarray:
        meta = self._meta
        name = meta.dimension_separator.join(str(number) for number in position) or "0"
        path = self.folder / name
        if not path.is_file():
            if meta.fill_value is None:
                raise UserError(
                    f"{self.folder} lacks the chunk {name}. Fetch the checkpoint again."
                )
            return np.full(meta.chunks, _fill(meta.fill_value, self.dtype), dtype=self._bytes)
        data = _decompress(path, meta.compressor)
        wanted = math.prod(meta.chunks) * np.dtype(self._bytes).itemsize
        if len(data) != wanted:
            raise UserError(
                f"The chunk {path} has {len(data)} bytes where {wanted} belong. Fetch the "
                "checkpoint again."
            )
        flat = np.frombuffer(data, dtype=self._bytes)
        return flat.reshape(meta.chunks, order="F" if meta.order == "F" else "C")


def _read_metadata(folder: Path) -> _Metadata:
    path = folder / METADATA_NAME
    try:
        meta = _Metadata.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(f"{path} is not the description of a zarr array.") from error
    problem = ""
    if meta.zarr_format != 2:
        problem = f"zarr format {meta.zarr_format}; only 2 is read"
    elif not isinstance(meta.dtype, str) or meta.dtype not in _DTYPES:
        problem = f"the dtype {json.dumps(meta.dtype)}, which holds no weights"
    elif meta.filters:
        problem = "filters, which no checkpoint has"
    elif len(meta.chunks) != len(meta.shape) or any(chunk < 1 for chunk in meta.chunks):
        problem = f"chunks {meta.chunks} that do not fit the shape {meta.shape}"
    if problem:
        raise UserError(f"{path} has {problem}.")
    return meta


def _decompress(path: Path, compressor: dict[str, Any] | None) -> bytes:
    data = path.read_bytes()
    if compressor is None:
        return data
    name = str(compressor.get("id"))
    try:
        if name == "lzma" and compressor.get("format", 1) == 3:
            return lzma.decompress(data, lzma.FORMAT_RAW, filters=compressor.get("filters"))
        if name in _STANDARD:
            return _STANDARD[name](data)
    except (OSError, zlib.error, lzma.LZMAError, EOFError, ValueError) as error:
        raise UserError(f"The chunk {path} is damaged ({error}). Fetch it again.") from error
    return _numcodecs(path, data, name, compressor)


def _numcodecs(path: Path, data: bytes, name: str, compressor: dict[str, Any]) -> bytes:
    try:
        numcodecs = importlib.import_module("numcodecs")
    except ModuleNotFoundError as error:
        raise UserError(
            f"{path.parent} is compressed with '{name}', which needs the package numcodecs: "
            "pip install numcodecs. (Megatron writes uncompressed arrays.)"
        ) from error
    try:
        return bytes(numcodecs.get_codec(compressor).decode(data))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"The chunk {path} is damaged ({error}). Fetch it again.") from error


def _fill(value: Any, dtype: str) -> Any:
    """The fill value in the dtype of the bytes; bfloat16 is kept as the upper half of a float32."""
    if dtype == "bfloat16":
        return np.array(float(value), dtype="<f4").view("<u4").item() >> 16
    return float(value) if dtype.startswith("float") else value


def _native(array: np.ndarray) -> np.ndarray:
    """uint16 is not a dtype that torch reinterprets everywhere; int16 has the same bytes."""
    return array.view("<i2") if array.dtype == np.dtype("<u2") else array
