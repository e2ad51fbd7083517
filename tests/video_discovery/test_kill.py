"""Killed at random moments, discovery goes on where it was and finds what it would have found.

COSMOS_KILLS=20 runs the long form.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from components.lib.manifest import load_manifest
from components.lib.store import ObjectStore
from components.video_discovery.config import VideoDiscoveryConfig
from tests.lib.video.kills import kill_count, run_undisturbed, run_with_kills


def test_killed_runs_end_with_the_records_of_an_undisturbed_one(
    store: ObjectStore,
    storage_root: str,
    store_env: dict[str, str],
    make_video: Callable[..., Path],
    tmp_path: Path,
) -> None:
    prefix = f"{storage_root}/videos"
    for number in range(12):
        path = make_video(tmp_path / "v.mp4", seed=number, frames=30)
        store.put_file(path, f"{prefix}/drive={number % 4}/{number}.mp4")
    config = VideoDiscoveryConfig(
        storage_root=f"{storage_root}/calm", source=prefix, max_still=1, workers=2
    )
    uri, seconds = run_undisturbed("video_discovery", config, store_env)
    calm = load_manifest(uri, store)
    config = config.model_copy(update={"storage_root": f"{storage_root}/killed"})
    done = run_with_kills("video_discovery", config, store_env, seconds, kill_count(), seed=1)
    for uri in done:
        assert load_manifest(uri, store).files == calm.files


def test_what_was_inspected_before_a_kill_is_not_inspected_again(
    store: ObjectStore, storage_root: str, tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    from components.lib.video.inspection import inspect_video
    from components.video_discovery import cache
    from components.video_discovery.entries import Entry

    found = inspect_video(make_video(tmp_path / "v.mp4"))
    entries = [Entry(f"/{number:05d}.mp4", 1, "v") for number in range(2500)]
    interrupted = cache.InspectionCache(store, storage_root, "/", ["ends"], tmp_path)
    for entry in entries:
        assert interrupted.get(entry) is None
        interrupted.put(entry, found, new=True)
    interrupted.fresh.close()  # the process dies here: two whole parts are saved
    (tmp_path / "again").mkdir()
    resumed = cache.InspectionCache(store, storage_root, "/", ["ends"], tmp_path / "again")
    known = [resumed.get(entry) for entry in entries]
    assert [one is not None for one in known] == [number < 2000 for number in range(2500)]
    assert known[0] == found
    for entry in entries:
        resumed.put(entry, found, new=False)
    resumed.close(complete=True)
    (tmp_path / "third").mkdir()
    third = cache.InspectionCache(store, storage_root, "/", ["ends"], tmp_path / "third")
    changed = Entry(entries[7].key, 1, "other")
    assert third.get(entries[6]) == found
    assert third.get(changed) is None
    assert all(third.get(entry) == found for entry in entries[8:])
    assert [i.uri.rsplit("/", 1)[-1] for i in store.list(third.prefix)] == ["all.jsonl.gz"]
