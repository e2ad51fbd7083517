"""The diffusion pipeline on this machine, as small as it gets, against the session's store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from components.lib.manifest import Manifest, load_manifest
from components.lib.store import ObjectStore
from components.lib.store.embedded import EmbeddedStore

CLI = str(Path(sys.executable).parent / "cosmos-pipelines")
SMALL = (
    "latent_encoding.chunks_per_video=5", "latent_encoding.shard_samples=2", "training.nproc=1",
    "trainer.max_steps=2", "trainer.val_check_interval=0", "evaluation.max_clips=2",
    "evaluation.samples=0", "evaluation.shown=0",
)  # fmt: skip


class Pipeline:
    """Runs the pipeline and knows what each run's stages wrote."""

    def __init__(
        self, store: ObjectStore, root: str, videos: Path, workspace: Path, env: dict[str, str]
    ) -> None:
        self.store, self.root, self.videos, self.workspace = store, root, videos, workspace
        self.env = {**env, "OMP_NUM_THREADS": "1"}

    def run(self, *options: str, fails: bool = False) -> str:
        """A run to its end; returns all that was printed."""
        words = [CLI, "run", "diffusion", "--local", "--external-store"]
        words += ["--videos", str(self.videos), "--workspace", str(self.workspace)]
        words += ["-p", f"storage_root={self.root}", "-p", "frames=9", "-p", "height=64"]
        words += ["-p", "width=96", *(word for item in SMALL for word in ("--set", item)), *options]
        done = subprocess.run(words, env=self.env, capture_output=True, text=True, check=False)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    def stages(self) -> list[dict[str, Any]]:
        """What the newest run's stages reported, in the order in which they ended."""
        newest = max((self.workspace / "runs").glob("*.jsonl"), key=lambda p: p.stat().st_mtime)
        return [json.loads(line) for line in newest.read_text().splitlines()]

    def manifest(self, stage: str) -> Manifest:
        """The last output of a stage in the newest run."""
        uris = [record["manifest"] for record in self.stages() if record["stage"] == stage]
        return load_manifest(uris[-1], self.store)


@pytest.fixture(scope="module")
def pipeline(
    embedded_store: EmbeddedStore,
    shared_client: ObjectStore,
    clips: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Pipeline:
    """The pipeline over two real clips, of which one has a prompt of its own."""
    workspace = tmp_path_factory.mktemp("diffusion")
    videos = workspace / "videos"
    videos.mkdir()
    for name in ("bikes", "bigbuckbunny"):
        (videos / f"{name}.mp4").write_bytes(clips[name].read_bytes())
    (videos / "bikes.txt").write_text("Cyclists ride along a street.\n")
    root = f"s3://cosmos/diffusion-{uuid.uuid4().hex[:12]}"
    environment = {**os.environ, **embedded_store.env}
    return Pipeline(shared_client, root, videos, workspace, environment)
