"""What each data stage says about its own work: counts, bytes, rates, and what it waited for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from components.harness.overrides import make_config
from components.lib.contract import Progress
from components.lib.manifest import Manifest
from components.lib.store import ObjectStore


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from components.lib.cosmos.formats.tiny import write_tiny

    return write_tiny(tmp_path_factory.mktemp("tiny"))


def test_every_data_stage_counts_and_times_its_work(
    tiny: Path, clips: dict[str, Path], store: ObjectStore, storage_root: str, progress: Progress
) -> None:
    """The stages as a pipeline runs them, on two real clips."""
    from components.lib.cosmos.formats import tiny as names

    def run(stage: str, **values: Any) -> Manifest:
        module = __import__(f"components.{stage}.stage", fromlist=["run"])
        config = make_config(stage, {"storage_root": storage_root, **values})
        result = module.run(config, store, progress)
        manifest: Manifest = result.manifest
        said.append((stage, {**manifest.timing, **result.metrics}))
        assert manifest.summary["metrics"] == result.metrics
        return manifest

    def uri(manifest: Manifest) -> str:
        return f"{manifest.uri}manifest.json"

    said: list[tuple[str, dict[str, float]]] = []
    tokenizer = run("checkpoint_fetch", source=str(tiny / names.CV_FOLDER), role="tokenizer")
    t5 = run("checkpoint_fetch", source=str(tiny / names.T5_FOLDER), role="t5")
    folder = tiny / "videos"
    folder.mkdir()
    for name in ("bikes", "carphone"):
        (folder / f"{name}.mp4").write_bytes(clips[name].read_bytes())
    videos = run("video_discovery", source=str(folder), prompt="a road")
    run("tar_sharding", videos=uri(videos))
    run("prompt_embedding", videos=uri(videos), checkpoint=uri(t5))
    run(
        "latent_encoding",
        **{"videos": uri(videos), "checkpoint": uri(tokenizer), "device": "cpu"},
        **{"frames": 9, "height": 64, "width": 96, "chunks_per_video": 2},
    )
    wanted = {
        "checkpoint_fetch": ("bytes_stored", "fetch_seconds", "convert_seconds", "store_seconds"),
        "video_discovery": ("videos", "gigabytes", "fetch_seconds", "decode_seconds"),
        "tar_sharding": ("samples", "gigabytes", "frames_per_second", "upload_wait_seconds"),
        "prompt_embedding": ("prompts",),
        "latent_encoding": (
            *("samples", "bytes", "frames_per_second", "seconds_decode"),
            *("seconds_encode", "bytes_fetched"),
        ),
    }
    for stage, found in said:
        for name in (*wanted[stage], "seconds"):
            assert found[name] > 0, (stage, name)
    last = dict(said)["latent_encoding"]
    assert last["frames_encoded"] == last["samples"] * 9
    for name in ("seconds_decode_wait", "seconds_fetch", "seconds_store_wait"):
        assert last[name] >= 0
