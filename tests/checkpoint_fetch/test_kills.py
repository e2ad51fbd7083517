"""The stage killed at random points: the next run gives the bytes of an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from components.checkpoint_fetch.config import CONFIG
from components.checkpoint_fetch.stage import run
from components.lib.cosmos.formats import vgg
from components.lib.cosmos.formats.source_config import write_config
from components.lib.cosmos.formats.tiny import initial_vgg
from components.lib.store import ObjectStore
from tests.conftest import SilentProgress
from tests.servers.hub import FakeHub

KILLS = int(os.environ.get("COSMOS_FETCH_KILLS", "4"))
CHILD = """
import sys, torch, huggingface_hub
import safetensors.torch
from components.checkpoint_fetch.config import CONFIG
from components.checkpoint_fetch.stage import run
from components.lib.progress import LineProgress
from components.lib.store import ObjectStore
store = ObjectStore.from_env()
print("ready", flush=True)
config = CONFIG(storage_root=sys.argv[1], source=sys.argv[2], role="vgg16", workers=2)
run(config, store, LineProgress())
print("done", flush=True)
"""


def test_kills(
    hub: FakeHub,
    hub_env: dict[str, str],
    store: ObjectStore,
    store_env: dict[str, str],
    storage_root: str,
    progress: SilentProgress,
    tmp_path: Path,
) -> None:
    from safetensors.torch import save_file

    channels = (32, 64, 96, 128, 128)
    folder = tmp_path / "vgg"
    folder.mkdir()
    save_file(initial_vgg(channels, 0), str(folder / "model.safetensors"))
    write_config(folder, "vgg16", "vgg", vgg.VGGConfig(channels=channels).model_dump(mode="json"))
    hub.folder("owner/vgg", folder)
    hub.faults.seconds_per_block = 0.002
    command = [sys.executable, "-c", CHILD, storage_root, "hf://owner/vgg"]
    draws, killed, finished = random.Random(7), 0, 0
    for _ in range(KILLS):
        child = subprocess.Popen(command, env={**store_env, **hub_env}, stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(draws.uniform(0.0, 1.2))
        child.send_signal(signal.SIGKILL)
        finished += b"done" in child.stdout.read()
        killed += child.wait() == -signal.SIGKILL
        child.stdout.close()
    assert killed >= KILLS / 2
    config = CONFIG(storage_root=storage_root, source="hf://owner/vgg", role="vgg16")
    survivor = run(config, store, progress).manifest
    elsewhere = config.model_copy(update={"storage_root": f"{storage_root}/undisturbed"})
    undisturbed = run(elsewhere, store, progress).manifest
    assert survivor.files == undisturbed.files
    assert survivor.content == undisturbed.content
    for entry in survivor.files:
        store.get_bytes(survivor.file_uri(entry.path), sha256=entry.sha256)
