"""Memory does not grow with the number of objects.

The full form lists 100,000 (``COSMOS_OBJECTS=100000``); the limit of 500 MB holds for it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

OBJECTS = int(os.environ.get("COSMOS_OBJECTS", "2000"))
PROGRAM = """
import json, re, sys
from pathlib import Path
from components.lib.progress import LineProgress
from components.lib.store import ObjectStore
from components.video_discovery.config import VideoDiscoveryConfig
from components.video_discovery.stage import run
config = VideoDiscoveryConfig(
    storage_root=sys.argv[1], source=sys.argv[2], max_bad_fraction=1, workers=2
)
result = run(config, ObjectStore.from_env(), LineProgress())
# Not ru_maxrss: that begins with what the process that started this one had.
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
print(json.dumps({"counts": result.manifest.summary["counts"], "peak_mb": peak}))
"""


def test_many_objects_take_little_memory(
    storage_root: str,
    store_env: dict[str, str],
    make_video: Callable[..., Path],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    good = make_video(tmp_path / "good.mp4")
    for number in range(OBJECTS):
        # Three in four are no videos: cheap to refuse, as much work to list, keep and describe.
        name = f"{number:06d}.mp4"
        if number % 4:
            (folder / name).write_bytes(b"%d" % number)
        else:
            (folder / name).write_bytes(good.read_bytes() + number.to_bytes(8))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, storage_root, str(folder)],
        env=store_env,
        capture_output=True,
        text=True,
        timeout=3600,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    record_property("peak_mb", found["peak_mb"])
    print(f"{OBJECTS} objects: {found['peak_mb']:.0f} MB at most")
    assert found["counts"]["listed"] == OBJECTS
    assert found["counts"]["ok"] == -(-OBJECTS // 4)
    assert found["peak_mb"] < 500
