"""Killed at random moments, sharding resumes and writes what an undisturbed run writes.

COSMOS_KILLS=20 runs the long form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from components.lib.manifest import load_manifest
from components.lib.store import ObjectStore
from components.lib.video.records import VideoRecord
from components.tar_sharding.config import TarShardingConfig
from tests.lib.video.kills import kill_count, run_undisturbed, run_with_kills


def test_killed_runs_end_with_the_bytes_of_an_undisturbed_one(
    store: ObjectStore,
    storage_root: str,
    store_env: dict[str, str],
    make_records: Callable[..., list[VideoRecord]],
    put_videos: Callable[[Iterable[VideoRecord]], str],
) -> None:
    config = TarShardingConfig(
        storage_root=f"{storage_root}/calm",
        videos=put_videos(make_records(12, frames=30)),
        clip_frames=9,  # not at keyframes: every clip is encoded
        max_shard_samples=6,
        workers=2,
    )
    uri, seconds = run_undisturbed("tar_sharding", config, store_env)
    calm = load_manifest(uri, store)
    assert len([entry for entry in calm.files if entry.path.endswith(".tar")]) > 3
    config = config.model_copy(update={"storage_root": f"{storage_root}/killed"})
    done = run_with_kills("tar_sharding", config, store_env, seconds, kill_count(), seed=2)
    for uri in done:
        resumed = load_manifest(uri, store)
        assert resumed.files == calm.files
        stored = {info.uri.removeprefix(resumed.uri) for info in store.list(resumed.uri)}
        assert stored == {entry.path for entry in resumed.files} | {"manifest.json"}
