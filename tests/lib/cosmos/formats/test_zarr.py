"""Arrays that tensorstore 0.1.86 and zarr 2.18 wrote (data/zarr_arrays.zip), read by ours.

Every array but the zeros ones holds 0.37·i - 5 for i = 0, 1, … in C order (integers: i).
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch

from components.lib.contract import UserError
from components.lib.cosmos.formats.zarr import ZarrArray


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arrays")
    with zipfile.ZipFile(Path(__file__).parent / "data" / "zarr_arrays.zip") as archive:
        for name in archive.namelist():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(archive.read(name))
    return folder


def values(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    count = torch.Size(shape).numel()
    if not dtype.is_floating_point:
        return torch.arange(count, dtype=dtype).reshape(shape)
    return (torch.arange(count, dtype=torch.float32) * 0.37 - 5).reshape(shape).to(dtype)


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("megatron_bfloat16", (3, 8, 6), torch.bfloat16),
        ("edges_float32", (5, 7), torch.float32),
        ("zlib_float16", (5, 7), torch.float16),
        ("gzip_int32", (5, 7), torch.int32),
        ("order_f", (5, 7), torch.float32),
        ("separator", (5, 7), torch.float32),
        ("zarr_lzma", (5, 7), torch.float64),
        ("zarr_bz2", (5, 7), torch.float32),
    ],
)
def test_arrays_of_the_reference_writers(
    arrays: Path, name: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    array = ZarrArray(arrays / name)
    assert (array.shape, array.dtype) == (shape, str(dtype).removeprefix("torch."))
    assert torch.equal(array.read(), values(shape, dtype))
    for start in range(shape[0]):
        for stop in range(start + 1, shape[0] + 1):
            assert torch.equal(array.read((start, stop)), values(shape, dtype)[start:stop])


def test_a_scalar(arrays: Path) -> None:
    assert ZarrArray(arrays / "scalar").read().item() == 2.5


def test_zero_chunks_are_read_whether_stored_or_not(arrays: Path) -> None:
    wanted = values((4, 4), torch.float32)
    wanted[:2, :2] = 0
    assert (arrays / "zeros_null_fill" / "0.0").is_file()
    assert not (arrays / "zeros_fill" / "0.0").exists()
    assert torch.equal(ZarrArray(arrays / "zeros_null_fill").read(), wanted)
    assert torch.equal(ZarrArray(arrays / "zeros_fill").read(), wanted)


def copied(arrays: Path, name: str, target: Path) -> Path:
    target.mkdir()
    for path in (arrays / name).iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_a_missing_chunk_is_named(arrays: Path, tmp_path: Path) -> None:
    folder = copied(arrays, "megatron_bfloat16", tmp_path / "array")
    (folder / "1.1.0").unlink()
    array = ZarrArray(folder)
    assert torch.equal(array.read((0, 1)), values((3, 8, 6), torch.bfloat16)[:1])
    with pytest.raises(UserError, match=r"lacks the chunk 1\.1\.0"):
        array.read()


def test_a_truncated_chunk_is_named(arrays: Path, tmp_path: Path) -> None:
    folder = copied(arrays, "edges_float32", tmp_path / "array")
    (folder / "0.1").write_bytes((folder / "0.1").read_bytes()[:-4])
    with pytest.raises(UserError, match=r"0\.1 has 20 bytes where 24 belong"):
        ZarrArray(folder).read()


def test_a_damaged_compressed_chunk_is_named(arrays: Path, tmp_path: Path) -> None:
    folder = copied(arrays, "zlib_float16", tmp_path / "array")
    (folder / "0.0").write_bytes(b"\0" * 40)
    with pytest.raises(UserError, match=r"0\.0 is damaged"):
        ZarrArray(folder).read()


@pytest.mark.parametrize("name", ["blosc_bfloat16", "zstd_int64"])
def test_compressors_of_numcodecs_are_read_or_named(arrays: Path, name: str) -> None:
    array = ZarrArray(arrays / name)
    dtype = getattr(torch, array.dtype)
    try:
        import numcodecs  # type: ignore[import-not-found, unused-ignore] # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(UserError, match="needs the package numcodecs"):
            array.read()
    else:
        assert torch.equal(array.read(), values((5, 7), dtype))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"zarr_format": 3}, "zarr format 3"),
        ({"dtype": "|O"}, "which holds no weights"),
        ({"dtype": [["a", "<f4"]]}, "which holds no weights"),
        ({"filters": [{"id": "delta"}]}, "filters"),
        ({"chunks": [2, 3, 4]}, "do not fit the shape"),
        ({"chunks": [0, 3]}, "do not fit the shape"),
    ],
)
def test_descriptions_that_are_not_weights_are_refused(
    arrays: Path, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    folder = copied(arrays, "edges_float32", tmp_path / "array")
    meta = json.loads((folder / ".zarray").read_text())
    (folder / ".zarray").write_text(json.dumps(meta | change))
    with pytest.raises(UserError, match=reason):
        ZarrArray(folder)
