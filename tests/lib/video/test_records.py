"""Records: their lines, their splits, and the ledger of processed videos."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.lib.contract import Progress, StageConfig, UserError
from components.lib.manifest import Manifest
from components.lib.stage import Output, StageSpec, execute
from components.lib.store import ObjectStore
from components.lib.video.ledger import commit_run, processed, runs
from components.lib.video.records import (
    VideoRecord,
    assign_splits,
    fetch_video,
    local_path,
    parse_records,
    read_records,
    record_line,
    write_records,
)


def record(number: int, drive: str = "", status: str = "ok") -> VideoRecord:
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    return VideoRecord.model_validate(
        {"uri": f"s3://b/{number}.mp4", "sha256": digest, "drive": drive, "status": status}
    )


drives = st.lists(st.sampled_from(["", "a", "b", "c", "d"]), min_size=1, max_size=40)


@given(drives=drives, fraction=st.floats(0.01, 0.9), seed=st.integers(0, 5))
def test_splits_hold_out_whole_drives_and_are_never_empty(
    drives: list[str], fraction: float, seed: int
) -> None:
    records = [record(number, drive) for number, drive in enumerate(drives)]
    split = assign_splits(records, fraction, seed)
    sides: dict[str, set[str | None]] = {}
    for one in split:
        sides.setdefault(one.group, set()).add(one.split)
    assert all(len(found) == 1 for found in sides.values())
    if len(sides) > 1:
        assert {one.split for one in split} == {"train", "validation"}
    else:
        assert {one.split for one in split} == {"train"}


@given(drives=drives, seed=st.integers(0, 5))
def test_splits_do_not_depend_on_order_or_on_unusable_videos(drives: list[str], seed: int) -> None:
    records = [record(number, drive) for number, drive in enumerate(drives)]
    forward = {one.uri: one.split for one in assign_splits(records, 0.2, seed)}
    bad = [record(1000 + number, status="quarantined") for number in range(3)]
    backward = assign_splits([*reversed(records), *bad], 0.2, seed)
    assert {one.uri: one.split for one in backward if one.status == "ok"} == forward
    assert all(one.split is None for one in backward if one.status != "ok")


def test_adding_videos_moves_few_across() -> None:
    """Only the group that stood in for an empty split may move when the set grows."""
    before = {one.uri: one.split for one in assign_splits([record(n) for n in range(200)], 0.1, 0)}
    after = {one.uri: one.split for one in assign_splits([record(n) for n in range(400)], 0.1, 0)}
    assert sum(before[uri] != after[uri] for uri in before) <= 2
    share = sum(split == "validation" for split in after.values()) / 400
    assert 0.05 < share < 0.16


@pytest.mark.parametrize("name", ["a b.mp4", "ü'\".mp4", "100%25.mp4", "#?.mp4", "tab\there.mp4"])
def test_local_names_survive(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    assert local_path(path.as_uri()) == path
    one = VideoRecord(uri=path.as_uri())
    assert one.name == name
    assert next(parse_records(io.BytesIO(record_line(one)), "x")) == one


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "videos.jsonl"
    path.write_bytes(record_line(record(1)) + b'{"width": 3}\n')
    with path.open("rb") as stream, pytest.raises(UserError, match=r"videos\.jsonl, line 2"):
        list(parse_records(stream, str(path)))


@pytest.fixture
def videos(store: ObjectStore, storage_root: str, progress: Progress, tmp_path: Path) -> Manifest:
    def work(inputs: dict[str, Manifest], output: Output) -> None:
        path = output.scratch / "videos.jsonl"
        write_records(path, [record(number) for number in range(5)])
        output.put_file("videos.jsonl", path)

    spec = StageSpec(name="video_discovery", version="t", kind="videos")
    config = StageConfig(storage_root=storage_root)
    return execute(spec, config, store, progress, work).manifest


def test_records_are_read_from_the_store(store: ObjectStore, videos: Manifest) -> None:
    assert list(read_records(videos, store)) == [record(number) for number in range(5)]


def test_changed_records_are_not_believed(store: ObjectStore, videos: Manifest) -> None:
    store.put_bytes(videos.file_uri("videos.jsonl"), record_line(record(7)))
    with pytest.raises(UserError, match="sha256"):
        list(read_records(videos, store))


def test_a_video_that_changed_since_discovery_is_refused(
    store: ObjectStore, storage_root: str, tmp_path: Path
) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(b"one")
    one = VideoRecord(uri=path.as_uri(), sha256=hashlib.sha256(b"one").hexdigest())
    assert fetch_video(one, store, tmp_path) == path
    path.write_bytes(b"two")
    with pytest.raises(UserError, match="has changed since discovery"):
        fetch_video(one, store, tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="is gone"):
        fetch_video(one, store, tmp_path)
    uri = f"{storage_root}/../odd name.mp4".replace("/../", "/..dots/")
    store.put_bytes(uri, b"one")
    fetched = fetch_video(one.model_copy(update={"uri": uri}), store, tmp_path / "in")
    assert fetched.read_bytes() == b"one" and fetched.parent == tmp_path / "in"


def test_the_ledger_knows_what_was_committed(
    store: ObjectStore, storage_root: str, videos: Manifest
) -> None:
    assert processed(store, storage_root, "fleet").videos == {}
    commit_run(store, storage_root, "fleet", "run-1", videos)
    commit_run(store, storage_root, "fleet", "run-1", videos)
    wanted = {bytes.fromhex(record(number).sha256) for number in range(5)}
    found = processed(store, storage_root, "fleet")
    assert set(found.videos) == wanted
    assert {record(number).group for number in range(5)} == set(found.groups)
    assert processed(store, storage_root, "other").videos == {}
    (run,) = runs(store, storage_root, "fleet")
    assert run == {"run": "run-1", "videos": videos.uri, "content": videos.content}


ODD_DRIVES = [
    "two\nlines", "tab\tbed", 'quo"ted', "it's", "U+2028\u2028", "next\x85line", "carriage\rreturn",
    " spaces ", "back\\slash", "form\ffeed", "", "nul\0", "ü字", '"drive::x"', "{}",
]  # fmt: skip


def test_a_drive_may_have_any_name(
    store: ObjectStore, storage_root: str, progress: Progress
) -> None:
    made = [record(number, drive) for number, drive in enumerate(ODD_DRIVES)]

    def work(inputs: dict[str, Manifest], output: Output) -> None:
        output.put_bytes("videos.jsonl", b"".join(map(record_line, made)))

    spec = StageSpec(name="video_discovery", version="t", kind="videos")
    config = StageConfig(storage_root=storage_root)
    manifest = execute(spec, config, store, progress, work).manifest
    assert list(read_records(manifest, store)) == made
    uri = commit_run(store, storage_root, "fleet", "run-1", manifest)
    found = processed(store, storage_root, "fleet")
    assert set(found.groups) == {video.group for video in made}
    assert set(found.videos) == {bytes.fromhex(video.sha256) for video in made}
    assert len(store.get_bytes(uri).decode().splitlines()) == 1 + len(made)


def test_a_ledger_of_an_older_version_is_read(store: ObjectStore, storage_root: str) -> None:
    sha256 = record(1).sha256
    text = f'{{"run": "old"}}\n{sha256} validation drive:v 1:two words\n'
    store.put_bytes(f"{storage_root}/ledger/fleet/old.txt", text.encode())
    assert processed(store, storage_root, "fleet").groups == {"drive:v 1:two words": "validation"}


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden"])
def test_a_ledger_name_is_a_word(store: ObjectStore, storage_root: str, name: str) -> None:
    with pytest.raises(UserError, match="cannot name a ledger"):
        processed(store, storage_root, name)
