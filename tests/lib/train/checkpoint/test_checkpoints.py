"""What is kept, what is read, and what is refused among the checkpoints of a run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor, Replicate, Shard

from components.lib.contract import UserError
from components.lib.manifest import FileEntry
from components.lib.store import ObjectStore
from components.lib.train.checkpoint import checkpoint
from components.lib.train.checkpoint.checkpoint import Checkpoints, DamagedCheckpoint
from components.lib.train.checkpoint.storage import FolderStorage, ObjectStorage, Storage
from components.lib.train.parallel.layout import ParallelLayout, start_processes, stop_processes
from components.lib.train.settings.config import CheckpointConfig, TrainerConfig


@pytest.fixture
def layout(monkeypatch: pytest.MonkeyPatch) -> Iterator[ParallelLayout]:
    """This process alone."""
    monkeypatch.delenv("RANK", raising=False)
    yield start_processes(TrainerConfig(accelerator="cpu"), model_parallel=False)
    stop_processes()


@pytest.fixture(params=["local", "store"])
def place(
    request: pytest.FixtureRequest, store: ObjectStore, storage_root: str, tmp_path: Path
) -> Storage:
    if request.param == "local":
        return FolderStorage(tmp_path / "run")
    return ObjectStorage(store, storage_root + "/run")


def tensor(layout: ParallelLayout, value: float) -> dict[str, torch.Tensor]:
    local = torch.full((3, 2), value)
    placements = (Replicate(), Shard(0))
    return {"model.w": DTensor.from_local(local, layout.host_flat_mesh, placements)}


def checkpoints(
    place: Storage, layout: ParallelLayout, folder: Path, **settings: object
) -> Checkpoints:
    return Checkpoints(place, layout, CheckpointConfig.model_validate(settings), folder)


def test_the_newest_and_the_best_are_kept(
    place: Storage, layout: ParallelLayout, tmp_path: Path
) -> None:
    saves = checkpoints(place, layout, tmp_path / "work", save_top_k=2)
    for step, loss in ((1, 0.9), (2, 0.3), (3, 0.5), (4, None), (5, 0.4)):
        state = {} if loss is None else {"validation_loss": loss}
        saves.save(step, tensor(layout, step), state, f"metrics {step}\n")
    saves.wait()
    assert saves.steps() == [2, 4, 5]
    assert not [name for name in place.names("checkpoints/") if "00000001" in name]


def test_what_was_saved_comes_back(place: Storage, layout: ParallelLayout, tmp_path: Path) -> None:
    saves = checkpoints(place, layout, tmp_path / "work")
    saves.save(7, tensor(layout, 7.5), {"consumed_samples": 28}, "a line\n")
    saves.wait()
    found = saves.newest()
    assert found is not None
    folder, manifest = found
    views = tensor(layout, 0.0)
    assert saves.load(folder, manifest, views, 0) == "a line\n"
    assert views["model.w"].to_local().eq(7.5).all()  # type: ignore[attr-defined]
    assert manifest.state == {"consumed_samples": 28, "step": 7}
    with pytest.raises(UserError, match="lacks"):
        saves.load(folder, manifest, {"model.other": views["model.w"]}, 0)


def test_a_large_state_is_several_files(
    place: Storage, layout: ParallelLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "FILE_BYTES", 50)  # two of the tensors of 24 bytes
    names = [f"model.{letter}" for letter in "abcde"]
    saves = checkpoints(place, layout, tmp_path / "work")
    values = {name: tensor(layout, float(n))["model.w"] for n, name in enumerate(names)}
    saves.save(1, values, {}, "")
    saves.wait()
    found = saves.newest()
    assert found is not None
    files = [entry for entry in found[1].files if entry.path.endswith(".safetensors")]
    assert len(files) == 3
    views = {name: tensor(layout, -1)["model.w"] for name in names}
    saves.load(*found, views, 0)
    assert [views[name].to_local()[0, 0].item() for name in names] == [0, 1, 2, 3, 4]  # type: ignore[attr-defined]


def test_files_are_as_dcp_itself_would_write_them(layout: ParallelLayout, tmp_path: Path) -> None:
    """The oracle: torch's own writer of the same tensors, of several shapes and types."""
    values = {
        "model.w": tensor(layout, 1.5)["model.w"],
        "optim.step": torch.tensor(7),
        "ema.b": torch.arange(6, dtype=torch.bfloat16).reshape(3, 2),
        "model.none": torch.empty(0, 4),
    }
    checkpoints(
        FolderStorage(tmp_path / "run"), layout, tmp_path / "work", asynchronous=False
    ).save(1, values, {}, "")
    theirs = tmp_path / "theirs"
    writer = HuggingFaceStorageWriter(str(theirs), save_distributed=True)
    dcp.save(values, storage_writer=writer, process_group=dist.group.WORLD)
    [file] = (tmp_path / "run" / "checkpoints").rglob("*.safetensors")
    [other] = theirs.glob("*.safetensors")
    with safe_open(file, "pt") as found, safe_open(other, "pt") as expected:
        assert set(found.keys()) == set(expected.keys()) == set(values)
        places, wanted = found.metadata(), expected.metadata()
        assert places.keys() == wanted.keys()
        assert json.loads(places.pop("DCP_SHARDING_INFO")) == json.loads(
            wanted.pop("DCP_SHARDING_INFO")
        )
        assert places == wanted
        for name in values:
            torch.testing.assert_close(
                found.get_tensor(name), expected.get_tensor(name), rtol=0, atol=0
            )


def test_the_disk_holds_only_what_is_on_its_way(
    layout: ParallelLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "FILE_BYTES", 24)  # a file for each tensor
    monkeypatch.setattr(checkpoint, "TRANSFERS", 1)
    work, seen = tmp_path / "work", []

    class Watched(FolderStorage):
        def put(self, source: Path, name: str, *, move: bool = False) -> FileEntry:
            seen.append(len(list(work.rglob("*.safetensors"))))
            return super().put(source, name)  # leaves the source, as a store does

    values = {str(n): tensor(layout, n)["model.w"] for n in range(5)}
    checkpoints(Watched(tmp_path / "run"), layout, work, asynchronous=False).save(1, values, {}, "")
    assert seen == [1, 1, 1, 1, 1]
    assert not list(work.rglob("*.safetensors"))


def test_others_may_read_what_a_run_leaves_in_a_shared_folder(
    layout: ParallelLayout, tmp_path: Path
) -> None:
    """As much as the umask lets them read any new file."""
    saves = checkpoints(FolderStorage(tmp_path / "run"), layout, tmp_path / "work")
    saves.save(1, tensor(layout, 1.0), {}, "")
    saves.wait()
    plain = tmp_path / "plain"
    plain.touch()
    modes = {path.stat().st_mode for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert modes == {plain.stat().st_mode}


@pytest.mark.parametrize("links", [True, False])
def test_a_restore_leaves_a_local_run_as_it_is(
    links: bool, layout: ParallelLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError("no links on this file system")

    if not links:
        monkeypatch.setattr(os, "link", refused)
    saves = checkpoints(FolderStorage(tmp_path / "run"), layout, tmp_path / "work")
    saves.save(1, tensor(layout, 2.5), {}, "")
    saves.wait()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    found = saves.newest()
    assert found is not None
    views = tensor(layout, 0.0)
    saves.load(*found, views, 0)
    views["model.w"].to_local().fill_(-1)  # type: ignore[attr-defined]
    assert {path: path.read_bytes() for path in before} == before
    assert not list((tmp_path / "work").rglob("*.safetensors"))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=20), st.integers(1, 100))
def test_files_hold_what_fits_in_order(sizes: list[int], limit: int) -> None:
    tensors = {str(n): torch.empty(size, dtype=torch.uint8) for n, size in enumerate(sizes)}
    numbers = checkpoint.file_of(tensors, limit)
    assert list(numbers) == list(tensors)
    assert sorted(set(numbers.values())) == list(range(1, max(numbers.values()) + 1))
    for number in set(numbers.values()):
        held = [tensors[name].nbytes for name in tensors if numbers[name] == number]
        assert sum(held) <= limit or len([size for size in held if size]) == 1


def test_a_checkpoint_without_manifest_is_not_seen(
    place: Storage, layout: ParallelLayout, tmp_path: Path
) -> None:
    saves = checkpoints(place, layout, tmp_path / "work")
    saves.save(1, tensor(layout, 1.0), {}, "")
    saves.wait()
    place.put_text("checkpoints/step-00000002/shard-00001.safetensors", "half written")
    found = saves.newest()
    assert found is not None and found[0] == "checkpoints/step-00000001/"
    assert saves.newest(before=found[0]) is None


def test_a_damaged_checkpoint_is_refused(
    place: Storage, layout: ParallelLayout, tmp_path: Path
) -> None:
    saves = checkpoints(place, layout, tmp_path / "work")
    saves.save(1, tensor(layout, 1.0), {}, "")
    saves.wait()
    [shard] = [n for n in place.names("checkpoints/") if n.endswith(".safetensors")]
    place.put_text(shard, "other bytes")
    found = saves.newest()
    assert found is not None
    with pytest.raises(DamagedCheckpoint):
        saves.load(*found, tensor(layout, 0.0), 0)


def test_an_error_of_the_writing_thread_surfaces(layout: ParallelLayout, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    saves = checkpoints(FolderStorage(blocked), layout, tmp_path / "work")
    saves.save(1, tensor(layout, 1.0), {}, "")
    with pytest.raises(OSError):
        saves.wait()
