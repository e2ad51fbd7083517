"""Killed at random moments, the stage resumes and writes what an undisturbed run writes.

COSMOS_KILLS=20 runs the long form, on more clips.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from components.latent_encoding.stage import run
from components.lib.manifest import MANIFEST_NAME, load_manifest
from components.lib.progress import LineProgress
from components.lib.store import ObjectStore
from components.lib.video.records import VideoRecord
from tests.latent_encoding.kills import (
    imported,
    kill_count,
    long_form,
    run_undisturbed,
    run_with_kills,
)


def test_killed_runs_end_with_the_bytes_of_an_undisturbed_one(
    store: ObjectStore,
    store_env: dict[str, str],
    clips: dict[str, Path],
    make_record: Callable[..., VideoRecord],
    put_videos: Callable[[list[VideoRecord]], str],
    make_config: Callable[..., Any],
) -> None:
    records = [
        make_record(clips["bikes"]),
        make_record(clips["carphone"], split="validation"),
        make_record(clips["bigbuckbunny"]),
    ]
    options: dict[str, Any] = {
        "chunks_per_video": 15 if long_form() else 6,
        "shard_samples": 8 if long_form() else 4,
        "save_every_s": 0,
        "batch_clips": 2,
    }
    config = make_config(put_videos(records), **options)
    with imported("latent_encoding", store_env) as stage:
        uri, seconds = run_undisturbed(stage, config)
        done = run_with_kills(stage, config, seconds, kill_count(), seed=0)
    calm = load_manifest(uri, store)
    for uri in done:
        resumed = load_manifest(uri, store)
        assert resumed.content == calm.content
        assert [entry.sha256 for entry in resumed.files] == [entry.sha256 for entry in calm.files]
        # Nothing but the listed files is left behind.
        stored = {info.uri.removeprefix(resumed.uri) for info in store.list(resumed.uri)}
        assert stored == {entry.path for entry in resumed.files} | {"manifest.json"}


def test_segments_of_a_run_killed_after_its_shards_are_removed(
    store: ObjectStore,
    clips: dict[str, Path],
    make_record: Callable[..., VideoRecord],
    put_videos: Callable[[list[VideoRecord]], str],
    make_config: Callable[..., Any],
) -> None:
    config = make_config(put_videos([make_record(clips["bikes"])]), chunks_per_video=2)
    first = run(config, store, LineProgress()).manifest
    store.delete(f"{first.uri}{MANIFEST_NAME}")
    store.put_bytes(f"{first.uri}segments/train-000000/0001.tar", b"what a killed run had sent")
    again = run(config, store, LineProgress()).manifest
    assert again.content == first.content
    assert not list(store.list(f"{first.uri}segments/"))
