"""Sharding: what the shards hold, and that they always come out the same."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from components.lib.contract import UserError
from components.lib.manifest import Manifest
from components.lib.stage import StageResult
from components.lib.store import ObjectStore
from components.lib.video.frames import iter_frames, read_clip
from components.lib.video.records import VideoRecord
from tests.lib.video import corpus

Shard = Callable[..., StageResult]
Describe = Callable[..., VideoRecord]
MakeRecords = Callable[..., list[VideoRecord]]
Samples = Callable[[Manifest], dict[str, dict[str, bytes]]]


def infos(found: dict[str, dict[str, bytes]]) -> list[dict[str, object]]:
    return [json.loads(parts["json"]) for parts in found.values()]


def tars(manifest: Manifest) -> dict[str, dict[str, object]]:
    return {entry.path: entry.meta for entry in manifest.files if entry.path.endswith(".tar")}


def test_videos_are_packed_byte_for_byte(
    shard: Shard, describe: Describe, samples: Samples, clips: dict[str, Path]
) -> None:
    records = [describe(clips["bikes"]), describe(clips["carphone"], split="validation")]
    manifest = shard(records).manifest
    found = samples(manifest)
    assert {parts["mp4"] for parts in found.values()} == {
        clips["bikes"].read_bytes(),
        clips["carphone"].read_bytes(),
    }
    bikes = next(info for info in infos(found) if info["name"] == "bikes.mp4")
    assert (bikes["frames"], bikes["fps"], bikes["method"]) == (250, 25.0, "copy")
    assert tars(manifest) == {
        "000000.tar": {"split": "train", "samples": 1},
        "000001.tar": {"split": "validation", "samples": 1},
    }
    assert manifest.summary["validation"] == "held-out"


def test_shards_keep_their_limits_and_splits(
    shard: Shard, make_records: MakeRecords, samples: Samples, store: ObjectStore
) -> None:
    records = make_records(16)
    limit = 40_000
    manifest = shard(records, max_shard_bytes=limit, max_shard_samples=3).manifest
    found = samples(manifest)
    assert sorted(found, key=int) == [str(number) for number in range(16)]
    held_out = {record.sha256 for record in records if record.split == "validation"}
    for name, meta in tars(manifest).items():
        entry = manifest.entry(name)
        assert entry.bytes <= limit and 1 <= int(str(meta["samples"])) <= 3
        data = store.get_bytes(manifest.file_uri(name))
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            members = archive.getmembers()
            read = [archive.extractfile(member) for member in members]
            texts = [
                json.loads(stream.read())
                for member, stream in zip(members, read, strict=True)
                if stream and member.name.endswith(".json")
            ]
        assert {text["split"] for text in texts} == {meta["split"]}
        assert all(
            (text["sha256"] in held_out) == (meta["split"] == "validation") for text in texts
        )
        assert all(member.mtime == 0 and member.uid == 0 for member in members)


def test_equal_videos_give_equal_shards_wherever_they_lie(
    shard: Shard, make_records: MakeRecords, describe: Describe, tmp_path: Path
) -> None:
    records = make_records(6)
    first = shard(records, max_shard_samples=2, workers=2).manifest
    moved = []
    for record in reversed(records):
        path = tmp_path / "moved" / record.name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((tmp_path / "made" / record.name).read_bytes())
        moved.append(record.model_copy(update={"uri": path.as_uri()}))
    second = shard(moved, root="/other", max_shard_samples=2).manifest
    assert [(entry.path, entry.sha256) for entry in second.files] == [
        (entry.path, entry.sha256) for entry in first.files
    ]
    reseeded = shard(records, root="/seed", max_shard_samples=2, seed=1).manifest
    assert reseeded.content != first.content


def test_a_rerun_is_found(shard: Shard, make_records: MakeRecords) -> None:
    records = make_records(2)
    first = shard(records)
    assert shard(records, workers=2).reused
    assert not first.reused


def test_videos_in_the_store_are_packed_too(
    shard: Shard, make_records: MakeRecords, samples: Samples, store: ObjectStore,
    storage_root: str, tmp_path: Path,
) -> None:  # fmt: skip
    records = []
    for record in make_records(3):
        uri = f"{storage_root}/in/{record.name}"
        store.put_file(tmp_path / "made" / record.name, uri)
        records.append(record.model_copy(update={"uri": uri}))
    found = samples(shard(records).manifest)
    assert {info["sha256"] for info in infos(found)} == {record.sha256 for record in records}


def test_fixed_length_clips_hold_their_frames(
    shard: Shard, describe: Describe, samples: Samples, tmp_path: Path
) -> None:
    plain = corpus.plain(tmp_path / "plain.mp4")  # 40 frames, keyframes every 10
    found = samples(shard([describe(plain)], clip_frames=10).manifest)
    assert [info["method"] for info in infos(found)] == ["remux"] * 4
    whole = np.stack(list(iter_frames(plain)))
    for info, parts in zip(infos(found), found.values(), strict=True):
        path = tmp_path / "clip.mp4"
        path.write_bytes(parts["mp4"])
        start = int(str(info["start_frame"]))
        assert np.array_equal(read_clip(path, count=10), whole[start : start + 10])
    found = samples(shard([describe(plain)], clip_frames=17, root="/x").manifest)
    assert [(info["start_frame"], info["method"]) for info in infos(found)] == [
        (0, "encode"),
        (17, "encode"),
    ]
    (tmp_path / "clip.mp4").write_bytes(list(found.values())[1]["mp4"])
    numbers = [corpus.number_of(frame) for frame in iter_frames(tmp_path / "clip.mp4")]
    assert numbers == list(range(17, 34))


def test_videos_are_cut_at_their_scenes(
    shard: Shard, describe: Describe, samples: Samples, clips: dict[str, Path], tmp_path: Path
) -> None:
    """The film's cuts are those found by eye; a video of one scene is packed as it is."""
    records = [describe(clips["bikes"]), describe(clips["carphone"])]
    manifest = shard(records, scenes=True, crf=0).manifest
    found = samples(manifest)
    cut = {
        int(str(info["start_frame"])): (info["frames"], parts["mp4"])
        for info, parts in zip(infos(found), found.values(), strict=True)
        if info["name"] == "bikes.mp4"
    }
    assert {start: frames for start, (frames, _) in cut.items()} == {
        0: 30, 30: 46, 76: 61, 137: 50, 187: 63,
    }  # fmt: skip
    (tmp_path / "scene.mp4").write_bytes(bytes(cut[76][1]))
    scene = np.stack(list(iter_frames(tmp_path / "scene.mp4")))
    whole = read_clip(clips["bikes"], start=76, count=61)
    assert np.abs(scene.astype(int) - whole).mean() < 1.5
    carphone = next(p for i, p in zip(infos(found), found.values(), strict=True)
                    if i["name"] == clips["carphone"].name)  # fmt: skip
    assert carphone["mp4"] == clips["carphone"].read_bytes()
    again = shard(records, scenes=True, crf=0, workers=2, root="/again").manifest
    assert again.files == manifest.files


def test_clips_of_fixed_length_lie_within_scenes(
    shard: Shard, describe: Describe, samples: Samples, clips: dict[str, Path]
) -> None:
    found = samples(shard([describe(clips["bikes"])], scenes=True, clip_frames=25).manifest)
    starts = [int(str(info["start_frame"])) for info in infos(found)]
    assert starts == [0, 30, 76, 101, 137, 162, 187, 212]


def test_a_video_whose_scenes_cannot_be_found_is_left_out_and_named(
    shard: Shard, describe: Describe, samples: Samples, tmp_path: Path
) -> None:
    good, bad = corpus.plain(tmp_path / "a.mp4"), corpus.damaged_middle(tmp_path / "bad.mp4")
    records = [describe(good), describe(bad)]
    manifest = shard(records, scenes=True, max_bad_fraction=0.5).manifest
    (left_out,) = manifest.summary["quarantined"]
    assert "bad.mp4" in left_out["uri"]
    assert {info["name"] for info in infos(samples(manifest))} == {"a.mp4"}
    with pytest.raises(UserError, match=r"1 of 2 videos .*bad\.mp4"):
        shard(records, scenes=True)
    with pytest.raises(UserError, match=r"No video .* usable.*bad\.mp4"):
        shard(records[1:], scenes=True)


def test_videos_shorter_than_a_clip_are_counted(
    shard: Shard, describe: Describe, tmp_path: Path
) -> None:
    long, short = corpus.frames_120(tmp_path / "long.mp4"), corpus.rotated_90(tmp_path / "s.mp4")
    manifest = shard([describe(long), describe(short)], clip_frames=60).manifest
    assert manifest.summary["samples"] == 2
    (left_out,) = manifest.summary["quarantined"]
    assert "s.mp4" in left_out["uri"] and "12 frames" in left_out["reason"]
    with pytest.raises(UserError, match=r"clip_frames=61.*s\.mp4, has 12"):
        shard([describe(short)], clip_frames=61, root="/short")


def test_other_containers_become_mp4(
    shard: Shard, describe: Describe, samples: Samples, tmp_path: Path
) -> None:
    matroska = corpus.wrong_extension(tmp_path / "video.mp4")
    found = samples(shard([describe(matroska)]).manifest)
    (info,) = infos(found)
    assert info["method"] == "remux"
    (tmp_path / "made.mp4").write_bytes(found["0"]["mp4"])
    assert [corpus.number_of(f) for f in iter_frames(tmp_path / "made.mp4")] == list(range(12))


def test_a_video_that_cannot_be_cut_is_left_out_and_named(
    shard: Shard, describe: Describe, samples: Samples, tmp_path: Path
) -> None:
    good = [corpus.plain(tmp_path / "a.mp4"), corpus.open_gop(tmp_path / "b.mp4")]
    bad = corpus.damaged_middle(tmp_path / "bad.mp4")
    records = [describe(path) for path in [*good, bad]]
    manifest = shard(records, clip_frames=13, max_bad_fraction=0.4).manifest
    (left_out,) = manifest.summary["quarantined"]
    assert "bad.mp4" in left_out["uri"]
    assert {info["name"] for info in infos(samples(manifest))} == {"a.mp4", "b.mp4"}
    with pytest.raises(UserError, match=r"1 of 3 videos .*bad\.mp4"):
        shard(records, clip_frames=13, max_bad_fraction=0.2)


def test_a_video_changed_since_discovery_stops_the_run(
    shard: Shard, make_records: MakeRecords, tmp_path: Path
) -> None:
    records = make_records(2)
    (tmp_path / "made" / "1.mp4").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"1\.mp4 has changed since discovery"):
        shard(records)


def test_without_videos_there_is_a_sentence(shard: Shard) -> None:
    with pytest.raises(UserError, match="lists no usable video"):
        shard([])
