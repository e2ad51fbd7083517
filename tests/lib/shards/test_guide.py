"""The guide's files: exactly the names, keys, shapes and dtypes its trainer reads."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

from components.lib.contract import UserError
from components.lib.shards.guide import (
    guide_parts,
    iter_guide_samples,
    list_guide_samples,
    load_tensor,
    read_guide_sample,
)
from components.lib.shards.latents import ClipInfo

INFO = ClipInfo(
    video="s3://fleet/x/drive 7.mp4",
    video_sha256="ab" * 32,
    prompt="p",
    prompt_sha256="cd" * 32,
    start=5,
    start_frame=5,
    num_frames=121,
    fps=29.97,
    source_fps=29.97,
    height=720,
    width=1280,
    clip_height=704,
    clip_width=1280,
    resize="stretch",
)


def write(folder: Path, index: int, latent: torch.Tensor, embedding: torch.Tensor) -> None:
    for name, data in guide_parts(index, latent, embedding, INFO).items():
        (folder / name).write_bytes(data)


def test_files_are_those_of_the_guide(tmp_path: Path) -> None:
    latent, embedding = torch.randn(16, 16, 88, 160), torch.randn(512, 1024)
    write(tmp_path, 3, latent, embedding)
    assert {path.name for path in tmp_path.iterdir()} == {
        "3.info.json",
        "3.t5_text_embeddings.pth",
        "3.t5_text_mask.pth",
        "3.video_latent.pth",
    }
    info = json.loads((tmp_path / "3.info.json").read_text())
    assert info == {
        "height": 720,
        "width": 1280,
        "fps": 29.97,
        "num_frames": 121,
        "video_path": "drive 7.mp4",
        "start_frame": 5,
    }
    # Read with torch alone, as the guide's trainer does.
    for name, expected in (
        ("video_latent", latent.bfloat16()),
        ("t5_text_embeddings", embedding.bfloat16()),
        ("t5_text_mask", torch.ones(512, dtype=torch.bfloat16)),
    ):
        found = torch.load(tmp_path / f"3.{name}.pth", weights_only=True)
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, expected)
    # No slack: the file is hardly larger than the tensor, 7.2 MB at full size.
    assert (tmp_path / "3.video_latent.pth").stat().st_size < latent.numel() * 2 + 2000


def test_a_view_does_not_drag_its_storage_along() -> None:
    batch = torch.randn(8, 16, 2, 8, 12)
    parts = guide_parts(0, batch[1], torch.zeros(512, 8), INFO)
    assert len(parts["0.video_latent.pth"]) < batch[1].numel() * 2 + 2000


def test_equal_samples_have_equal_bytes() -> None:
    latent, embedding = torch.randn(16, 2, 8, 12), torch.randn(512, 8)
    assert guide_parts(7, latent, embedding, INFO) == guide_parts(7, latent, embedding, INFO)


def test_samples_are_read_back_in_numeric_order(tmp_path: Path) -> None:
    for index in (10, 2, 0):
        write(tmp_path, index, torch.full((1, 1, 1, 1), float(index)), torch.zeros(512, 4))
    samples = list(iter_guide_samples(tmp_path))
    assert [sample.index for sample in samples] == [0, 2, 10]
    assert [float(sample.latent) for sample in samples] == [0.0, 2.0, 10.0]
    assert samples[0].info["num_frames"] == 121


def test_an_incomplete_sample_is_named(tmp_path: Path) -> None:
    write(tmp_path, 4, torch.zeros(1, 1, 1, 1), torch.zeros(512, 4))
    (tmp_path / "4.t5_text_mask.pth").unlink()
    with pytest.raises(UserError, match=r"no file 4\.t5_text_mask\.pth"):
        list_guide_samples(path.name for path in tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "missing"])
def test_damaged_files_are_named(tmp_path: Path, damage: str) -> None:
    write(tmp_path, 0, torch.zeros(1, 1, 1, 1), torch.zeros(512, 4))
    path = tmp_path / "0.video_latent.pth"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else b"not a tensor")
    with pytest.raises(UserError, match=r"0\.video_latent\.pth"):
        read_guide_sample(tmp_path, 0)


class Trap:
    """Pickles to a call that would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_nothing_but_tensors_is_ever_unpickled(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    buffer = io.BytesIO()
    torch.save(Trap(sprung), buffer)
    (tmp_path / "0.video_latent.pth").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match=r"0\.video_latent\.pth"):
        load_tensor(tmp_path / "0.video_latent.pth")
    assert not sprung.exists()
    torch.save({"a": torch.zeros(1)}, tmp_path / "d.pth")
    with pytest.raises(UserError, match="holds a dict"):
        load_tensor(tmp_path / "d.pth")
