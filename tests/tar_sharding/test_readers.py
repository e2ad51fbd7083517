"""The loaders of others read our shards: megatron-energon, webdataset, tarfile."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.lib.manifest import Manifest
from components.lib.stage import StageResult
from components.lib.video.records import VideoRecord

Shard = Callable[..., StageResult]
MakeRecords = Callable[..., list[VideoRecord]]
Download = Callable[[Manifest], Path]


def energon_samples(folder: Path, split: str) -> list[Any]:
    from megatron.energon import WorkerConfig, get_loader, get_val_dataset

    worker = WorkerConfig(rank=0, world_size=1, num_workers=0)
    dataset = get_val_dataset(
        str(folder), split_part=split, worker_config=worker, batch_size=1, auto_decode=False
    )
    return list(get_loader(dataset))


def test_energon_reads_every_sample_of_each_split(
    shard: Shard, make_records: MakeRecords, download: Download
) -> None:
    records = make_records(8)
    folder = download(shard(records, max_shard_samples=3).manifest)
    for split, ours in (("train", "train"), ("val", "validation")):
        wanted = {
            (folder.parent / "made" / record.name).read_bytes()
            for record in records
            if record.split == ours
        }
        batches = energon_samples(folder, split)
        got = [bytes(image) for batch in batches for image in batch.image]
        assert len(got) == len(wanted) and set(got) == wanted


def test_energon_decodes_the_video(
    shard: Shard, make_records: MakeRecords, download: Download
) -> None:
    from megatron.energon import WorkerConfig, get_loader, get_train_dataset

    folder = download(shard(make_records(2, frames=9)).manifest)
    dataset = get_train_dataset(
        str(folder),
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
        batch_size=None,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
    )
    sample = next(iter(get_loader(dataset)))
    (clip,) = sample.image.get_video().video_clips
    assert clip.shape == (9, 3, 32, 48)


def test_energon_finds_any_sample_by_its_key(
    shard: Shard, make_records: MakeRecords, download: Download
) -> None:
    from megatron.energon.epathlib import EPath
    from megatron.energon.flavors.webdataset.itar_reader import SqliteITarEntryReader

    folder = download(shard(make_records(8), max_shard_samples=3).manifest)
    reader = SqliteITarEntryReader(EPath(str(folder)))
    keys = {key for key, *_ in reader.list_all_samples()}
    assert keys == {str(number) for number in range(8)}
    for number in range(8):
        sample = reader[str(number)]
        assert json.loads(sample["json"])["name"].endswith(".mp4")


def test_energons_own_preparation_finds_what_we_wrote(
    shard: Shard, make_records: MakeRecords, download: Download, tmp_path: Path
) -> None:
    import sqlite3

    from megatron.energon.epathlib import EPath
    from megatron.energon.flavors import BaseWebdatasetFactory

    folder = download(shard(make_records(8), max_shard_samples=3).manifest)
    ours = _tables(folder / ".nv-meta" / "index.sqlite")
    offsets = {path.name: path.read_bytes() for path in folder.glob("*.tar.idx")}
    info = json.loads((folder / ".nv-meta" / ".info.json").read_text())
    for path in [*folder.glob("*.tar.idx"), *(folder / ".nv-meta").iterdir()]:
        path.unlink()
    BaseWebdatasetFactory.prepare_dataset(
        EPath(str(folder)),
        sorted(path.name for path in folder.glob("*.tar")),
        split_parts_ratio=[("train", 1.0)],
        workers=1,
    )
    assert _tables(folder / ".nv-meta" / "index.sqlite") == ours
    assert {path.name: path.read_bytes() for path in folder.glob("*.tar.idx")} == offsets
    theirs = json.loads((folder / ".nv-meta" / ".info.json").read_text())
    assert theirs["shard_counts"] == info["shard_counts"]
    assert sqlite3.sqlite_version


def _tables(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    import sqlite3

    database = sqlite3.connect(path)
    try:
        return {
            table: sorted(database.execute(f"SELECT * FROM {table}"))
            for table in ("samples", "sample_parts")
        }
    finally:
        database.close()


def test_webdataset_reads_every_sample(
    shard: Shard, make_records: MakeRecords, download: Download
) -> None:
    import webdataset

    records = make_records(6)
    folder = download(shard(records, max_shard_samples=2).manifest)
    shards = sorted(str(path) for path in folder.glob("*.tar"))
    found = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [sample["__key__"] for sample in found] == [str(number) for number in range(6)]
    assert {json.loads(sample["json"])["sha256"] for sample in found} == {
        record.sha256 for record in records
    }
    assert all(sample["mp4"][4:8] == b"ftyp" for sample in found)


@pytest.mark.parametrize(("count", "validation"), [(8, "held-out"), (1, "same-video")])
def test_the_index_says_what_is_held_out(
    shard: Shard, make_records: MakeRecords, download: Download, count: int, validation: str
) -> None:
    manifest = shard(make_records(count)).manifest
    folder = download(manifest)
    splits = yaml.safe_load((folder / ".nv-meta" / "split.yaml").read_text())["split_parts"]
    assert manifest.summary["validation"] == validation
    if count == 1:
        assert splits == {"train": ["000000.tar"], "val": ["000000.tar"], "test": []}
    else:
        assert splits == {"train": ["000000.tar"], "val": ["000001.tar"], "test": []}
    dataset = yaml.safe_load((folder / ".nv-meta" / "dataset.yaml").read_text())
    assert dataset["field_map"] == {"image": "mp4"}
