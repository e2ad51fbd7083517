"""A long 720p video is indexed, checked, sought in and streamed in little memory.

The short form has a minute; COSMOS_VIDEO_HOURS=2 makes it two hours, for which the limit of
2 GB holds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.bench_decode import repeated

HOURS = float(os.environ.get("COSMOS_VIDEO_HOURS", "0.02"))
SECONDS_OF_CLIP = 5.28
PROGRAM = """
import json, re, sys
from pathlib import Path
from components.lib.video.cut import cut_mp4
from components.lib.video.frames import iter_clips, iter_frames
from components.lib.video.index import build_index
from components.lib.video.probe import probe
path = Path(sys.argv[1])
found = probe(path)
index = build_index(path)
starts = [index.frames * n // 20 for n in range(20)]
clips = sum(len(clip) for _, clip in iter_clips(path, starts, 33, size=(704, 1280), index=index))
streamed = sum(1 for _ in iter_frames(path, count=min(index.frames, 1000)))
method = cut_mp4(path, path.with_name("clip.mp4"), start=index.frames - 132, index=index)
# Not ru_maxrss: that begins with what the process that started this one had.
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
print(json.dumps({"frames": found.frames, "clips": clips, "streamed": streamed, "peak_mb": peak}))
"""


@pytest.mark.timeout(3600)
def test_memory_stays_flat(clips: dict[str, Path], tmp_path: Path) -> None:
    times = max(1, round(HOURS * 3600 / SECONDS_OF_CLIP))
    path = repeated(clips["bigbuckbunny"], tmp_path / "long.mp4", times)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    print(f"{found['frames']} frames: {found['peak_mb']:.0f} MB at most")
    assert found["frames"] == 132 * times
    assert found["clips"] == 20 * 33
    # Twenty clips of 89 MB are made, never held: one is, beside the decoder's own frames.
    assert found["peak_mb"] < 700
