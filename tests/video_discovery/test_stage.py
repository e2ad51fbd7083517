"""Discovery: what a user finds in the records, and what stops a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.lib.contract import Progress, UserError
from components.lib.manifest import MANIFEST_NAME
from components.lib.stage import StageResult
from components.lib.store import ObjectStore, StoreError
from components.lib.video.encode import write_mp4
from components.lib.video.ledger import commit_run
from components.lib.video.records import VideoRecord, local_path
from components.video_discovery.config import VideoDiscoveryConfig
from components.video_discovery.stage import run

Discover = Callable[..., StageResult]
Records = Callable[..., list[VideoRecord]]
MakeVideo = Callable[..., Path]


def counts(result: StageResult) -> dict[str, int]:
    found: dict[str, int] = result.manifest.summary["counts"]
    return found


def test_real_clips_are_described(
    discover: Discover, records: Records, clips: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("bigbuckbunny", "bikes"):
        shutil.copy(clips[name], tmp_path / f"{name}.mp4")
    result = discover(tmp_path, prompt="A video of sks {subject}.", subject="rabbit")
    bunny, bikes = records(result)
    assert (bunny.width, bunny.height, bunny.frames, bunny.fps) == (1280, 720, 132, 25)
    assert (bikes.width, bikes.height, bikes.frames, bikes.codec) == (640, 272, 250, "h264")
    assert bunny.prompt == "A video of sks rabbit."
    assert local_path(bunny.uri) == tmp_path / "bigbuckbunny.mp4"
    assert {bunny.split, bikes.split} == {"train", "validation"}
    assert counts(result)["ok"] == 2
    assert result.metrics["frames"] == 382


def test_one_file_is_a_source_whatever_its_name(
    discover: Discover, records: Records, clips: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "recording.dat"
    shutil.copy(clips["carphone"], path)
    (tmp_path / "recording.txt").write_text("A phone call.")
    result = discover(path)
    (only,) = records(result)
    assert only.frames == 120 and only.split == "train" and only.prompt == "A phone call."
    assert result.manifest.summary["validation"] == "same-video"


def test_bad_files_are_quarantined_with_their_reason(
    discover: Discover, records: Records, make_video: MakeVideo, tmp_path: Path
) -> None:
    good = make_video(tmp_path / "good.mp4")
    (tmp_path / "cut.mp4").write_bytes(good.read_bytes()[:-300])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "notes.md").write_text("not listed")
    result = discover(tmp_path, max_bad_fraction=0.7)
    assert [record.name for record in records(result)] == ["good.mp4"]
    bad = {record.name: record for record in records(result, "quarantine.jsonl")}
    assert bad.keys() == {"cut.mp4", "empty.mp4"}
    assert "empty" in bad["empty.mp4"].reason and "cut off" in bad["cut.mp4"].reason
    assert all(record.status == "quarantined" and record.split is None for record in bad.values())
    assert counts(result)["unreadable"] == 2 and counts(result)["ignored_files"] == 1
    with pytest.raises(UserError, match=r"2 of the 3 videos .* max_bad_fraction=0\.5.*cut\.mp4"):
        discover(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("cut.mp4", None, "cut off"),
        ("text.mp4", b"hello", "not a readable video"),
        ("zero.mp4", b"", "empty"),
    ],
)
def test_a_single_bad_file_fails_in_one_sentence_that_names_it(
    discover: Discover,
    store: ObjectStore,
    storage_root: str,
    clips: dict[str, Path],
    tmp_path: Path,
    name: str,
    content: bytes | None,
    sentence: str,
) -> None:
    path = tmp_path / name
    path.write_bytes(clips["bikes"].read_bytes()[:200_000] if content is None else content)
    for source in (path, tmp_path):
        with pytest.raises(UserError) as caught:
            discover(source)
        assert str(path) in str(caught.value) and sentence in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not [i for i in store.list(f"{storage_root}/") if i.uri.endswith(MANIFEST_NAME)]


def test_an_empty_or_missing_source_is_named(discover: Discover, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no video in {tmp_path}"):
        discover(tmp_path)
    (tmp_path / "a.md").write_text("x")
    with pytest.raises(UserError, match="1 other files"):
        discover(tmp_path)
    with pytest.raises(UserError, match="no file or folder at /nowhere/at/all"):
        discover("/nowhere/at/all")
    with pytest.raises(UserError, match="no known kind"):
        discover("ftp://host/x")
    with pytest.raises(StoreError, match="no-such-bucket"):
        discover("s3://no-such-bucket/videos/")


def test_equal_content_is_used_once(
    discover: Discover, records: Records, make_video: MakeVideo, tmp_path: Path
) -> None:
    first = make_video(tmp_path / "a.mp4")
    shutil.copy(first, tmp_path / "b.mp4")
    make_video(tmp_path / "c.mp4", seed=1)
    result = discover(tmp_path)
    assert [record.name for record in records(result)] == ["a.mp4", "c.mp4"]
    (copy,) = records(result, "quarantine.jsonl")
    assert copy.status == "duplicate" and str(first) in copy.reason


def test_prompts_come_from_the_nearest_source(
    discover: Discover, records: Records, make_video: MakeVideo, tmp_path: Path
) -> None:
    names = ("a", "b.x", "c", "d", "e")
    for seed, name in enumerate(names):
        make_video(tmp_path / "videos" / f"{name}.mp4", seed=seed)
    videos = tmp_path / "videos"
    (videos / "a.txt").write_text("  From the\n text. ")
    (videos / "b.x.json").write_text(json.dumps({"caption": "From JSON.", "drive": "d7"}))
    (tmp_path / "instructions").mkdir()
    (tmp_path / "instructions" / "c.json").write_text(
        json.dumps({"language_instruction_0": "From the layout."})
    )
    table = tmp_path / "table.csv"
    table.write_text("file,prompt,vehicle\nvideos/d.mp4,From the table.,v1\na.mp4,Not this.,v2\n")
    result = discover(videos, table=str(table), prompt="From {subject}.", subject="all")
    found = {record.name: record for record in records(result)}
    assert [found[f"{name}.mp4"].prompt for name in names] == [
        "From the text.", "From JSON.", "From the layout.", "From the table.", "From all.",
    ]  # fmt: skip
    assert found["b.x.mp4"].drive == "d7"
    assert (found["a.mp4"].vehicle, found["d.mp4"].vehicle) == ("v2", "v1")


def test_a_table_may_be_jsonl_in_the_store(
    discover: Discover, records: Records, make_video: MakeVideo, store: ObjectStore,
    storage_root: str, tmp_path: Path,
) -> None:  # fmt: skip
    make_video(tmp_path / "a.mp4")
    uri = f"{storage_root}/table.jsonl"
    store.put_bytes(uri, b'{"video": "a.mp4", "prompt": "Rain.", "drive": 12}\n\n')
    (only,) = records(discover(tmp_path, table=uri))
    assert (only.prompt, only.drive) == ("Rain.", "12")
    store.put_bytes(uri, b'{"video": "a.mp4"}\nnot json\n')
    with pytest.raises(UserError, match=r"table\.jsonl, line 2 is not JSON"):
        discover(tmp_path, table=uri)


def test_a_table_s_lines_end_at_line_feeds_only(
    discover: Discover, records: Records, make_video: MakeVideo, tmp_path: Path
) -> None:
    """JSON allows these in a text; they are line ends for some readers."""
    name = "no\u00a0break  two\u2028.mp4"
    make_video(tmp_path / "in" / name)
    row = {"file": name, "prompt": "Rain\u2028and\x85wind.", "drive": "half \ud800"}
    table = tmp_path / "table.jsonl"
    text = json.dumps(row, ensure_ascii=False).replace("\ud800", "\\ud800")
    table.write_bytes(text.encode() + b'\r\n{"file": "other.mp4"}\r\n')
    (only,) = records(discover(tmp_path / "in", table=str(table)))
    assert only.prompt == "Rain and wind."
    assert only.drive == "half ?"


def test_drives_and_vehicles_in_paths_decide_the_split(
    discover: Discover, records: Records, make_video: MakeVideo, tmp_path: Path
) -> None:
    for number in range(8):
        folder = tmp_path / f"vehicle={number % 2}" / f"drive-{number // 2}"
        make_video(folder / f"{number}.mp4", seed=number)
    found = records(discover(tmp_path, validation_fraction=0.3))
    assert {(record.vehicle, record.drive) for record in found} == {
        (str(n % 2), str(n // 2)) for n in range(8)
    }
    groups: dict[str, set[Any]] = {}
    for record in found:
        groups.setdefault(record.group, set()).add(record.split)
    assert all(len(splits) == 1 for splits in groups.values())
    assert {record.split for record in found} == {"train", "validation"}


def test_a_prompt_that_names_a_subject_needs_one(discover: Discover, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no subject is given"):
        discover(tmp_path, prompt="A video of sks {subject}.")


@pytest.mark.parametrize(
    ("settings", "kept", "reason"),
    [
        ({"min_frames": 9}, {"long", "still", "black"}, "fewer than min_frames=9"),
        ({"min_width": 50}, {"long"}, "48 x 32 pixels"),
        ({"min_duration": 0.5}, {"long", "still", "black"}, "0.32 s"),
        ({"max_black": 16}, {"short", "long", "still"}, "black"),
        ({"max_still": 2}, {"short", "long"}, "still picture"),
        ({"max_near_duplicates": 0.5}, {"short", "long"}, "repeat the one before"),
    ],
)
def test_filters(
    discover: Discover, records: Records, make_video: MakeVideo, tmp_path: Path,
    settings: dict[str, Any], kept: set[str], reason: str,
) -> None:  # fmt: skip
    make_video(tmp_path / "short.mp4", seed=1)
    make_video(tmp_path / "long.mp4", seed=2, frames=20, size=(64, 64))
    make_video(tmp_path / "still.mp4", seed=3, frames=20, still=True)
    black = np.zeros((32, 48, 3), np.uint8)
    write_mp4(tmp_path / "black.mp4", (black for _ in range(20)), 25)
    result = discover(tmp_path, max_bad_fraction=0, **settings)
    assert {record.name.removesuffix(".mp4") for record in records(result)} == kept
    dropped = records(result, "quarantine.jsonl")
    assert any(reason in record.reason for record in dropped)
    assert counts(result)["filtered"] == len(dropped) and counts(result)["unreadable"] == 0


def test_odd_names_in_a_folder(
    discover: Discover, records: Records, make_video: MakeVideo, tmp_path: Path
) -> None:
    names = ["a b.mp4", 'it\'s "x".mp4', "ü–字.mp4", "100%25 #?.MP4", "new\nline.mp4", "-rf.mov"]
    for seed, name in enumerate(names):
        make_video(tmp_path / "in" / name.replace(".mov", ".mp4"), seed=seed)
    (tmp_path / "in" / "-rf.mp4").rename(tmp_path / "in" / "-rf.mov")
    make_video(tmp_path / "in" / ".hidden.mp4", seed=99)
    bad = tmp_path / "in" / "caf\udce9.mp4"  # a name that is not UTF-8
    make_video(tmp_path / "x.mp4", seed=50).rename(bad)
    found = records(discover(tmp_path / "in"))
    paths = {local_path(record.uri) for record in found}
    assert paths == {*(tmp_path / "in" / name for name in names), bad}


def test_a_second_run_inspects_nothing_and_finds_the_same(
    discover: Discover, store: ObjectStore, make_video: MakeVideo, tmp_path: Path
) -> None:
    for seed in range(3):
        make_video(tmp_path / f"{seed}.mp4", seed=seed)
    first = discover(tmp_path)
    again = discover(tmp_path)
    assert again.reused and again.manifest_uri == first.manifest_uri
    make_video(tmp_path / "3.mp4", seed=3)
    grown = discover(tmp_path)
    assert grown.manifest.timing["files_inspected"] == 1
    assert counts(grown)["ok"] == 4
    assert grown.manifest.content != first.manifest.content
    make_video(tmp_path / "0.mp4", seed=9)  # same name, other content
    changed = discover(tmp_path)
    assert changed.manifest.timing["files_inspected"] == 1
    assert changed.manifest.content != grown.manifest.content


def test_only_what_the_ledger_does_not_hold(
    discover: Discover, records: Records, store: ObjectStore, storage_root: str,
    make_video: MakeVideo, tmp_path: Path,
) -> None:  # fmt: skip
    for seed in range(3):
        make_video(tmp_path / f"{seed}.mp4", seed=seed)
    first = discover(tmp_path, only_new=True)
    assert counts(first)["ok"] == 3
    assert discover(tmp_path, only_new=True).manifest.content == first.manifest.content
    commit_run(store, storage_root, "default", "monday", first.manifest)
    make_video(tmp_path / "3.mp4", seed=3)
    second = discover(tmp_path, only_new=True)
    assert [record.name for record in records(second)] == ["3.mp4"]
    assert counts(second)["already_processed"] == 3
    commit_run(store, storage_root, "default", "tuesday", second.manifest)
    nothing = discover(tmp_path, only_new=True)
    assert records(nothing) == [] and counts(nothing)["already_processed"] == 4
    assert counts(discover(tmp_path))["ok"] == 4
    assert counts(discover(tmp_path, only_new=True, ledger="other"))["ok"] == 4


def test_drives_of_any_name_go_through_the_ledger(
    discover: Discover, records: Records, store: ObjectStore, storage_root: str,
    make_video: MakeVideo, tmp_path: Path,
) -> None:  # fmt: skip
    drives = ["two\nlines", "tab\tbed", 'quo"ted', "sep\u2028arated", "next\x85line", "re\rturn"]
    for seed, drive in enumerate(drives):
        make_video(tmp_path / f"drive={drive}" / "0.mp4", seed=seed)
    first = discover(tmp_path, only_new=True, validation_fraction=0.5)
    assert {record.drive for record in records(first)} == set(drives)
    commit_run(store, storage_root, "default", "monday", first.manifest)
    for seed, drive in enumerate(drives, len(drives)):
        make_video(tmp_path / f"drive={drive}" / "1.mp4", seed=seed)
    second = records(discover(tmp_path, only_new=True, validation_fraction=0.5))
    assert {record.name for record in second} == {"1.mp4"}
    kept = {record.drive: record.split for record in records(first)}
    assert {record.drive: record.split for record in second} == kept


def test_a_bucket_prefix_is_a_source(
    discover: Discover, records: Records, store: ObjectStore, storage_root: str,
    make_video: MakeVideo, tmp_path: Path,
) -> None:  # fmt: skip
    prefix = f"{storage_root}/fleet"
    names = ["drive=1/a b.mp4", "drive=1/ü'\".mp4", "..x/up..mp4", "c.mp4", "new\nline\u2028.mp4"]
    for seed, name in enumerate(names):
        store.put_file(make_video(tmp_path / "v.mp4", seed=seed), f"{prefix}/{name}")
    store.put_bytes(f"{prefix}/c.txt", b"A calm street.")
    store.put_bytes(f"{prefix}/bad.mp4", b"no video")
    store.put_file(make_video(tmp_path / "v.mp4", seed=8), f"{prefix}-other/z.mp4")
    for source in (prefix, prefix + "/"):
        found = records(discover(source))
        assert {record.uri for record in found} == {f"{prefix}/{name}" for name in names}
    prompts = {record.name: record.prompt for record in found}
    assert prompts["c.mp4"] == "A calm street." and prompts["a b.mp4"] == ""
    assert {record.drive for record in found} == {"", "1"}
    (one,) = records(discover(f"{prefix}/c.mp4"))
    assert one.uri == f"{prefix}/c.mp4" and one.prompt == "A calm street."
    assert discover(source).reused


def test_equal_sources_give_equal_files(
    store: ObjectStore, storage_root: str, progress: Progress, make_video: MakeVideo,
    tmp_path: Path,
) -> None:  # fmt: skip
    for seed in range(6):
        make_video(tmp_path / f"{seed}.mp4", seed=seed)
    (tmp_path / "bad.mp4").write_bytes(b"x")
    contents = set()
    for workers in (1, 3):
        config = VideoDiscoveryConfig(
            storage_root=f"{storage_root}/{workers}", source=str(tmp_path), workers=workers
        )
        contents.add(run(config, store, progress).manifest.content)
    assert len(contents) == 1


def test_a_bad_sidecar_is_named(discover: Discover, make_video: MakeVideo, tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"a\.json describes a video but is not JSON"):
        discover(tmp_path)
