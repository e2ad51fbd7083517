"""The program of a decoding child: does what lines on stdin ask for, answers on stdout.

Started by `components.lib.video.isolated` as
``python -m components.lib.video.child MEMORY_BYTES LARGEST_FILE_BYTES``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from components.lib.system.child_process import bound_resources, end_with_parent
from components.lib.video.container import VideoError
from components.lib.video.cut import cut_mp4
from components.lib.video.index import build_index
from components.lib.video.inspection import Inspection, inspect_video
from components.lib.video.scenes import find_scenes


def main() -> None:
    """Serve requests until stdin closes."""
    bound_resources(memory_bytes=int(sys.argv[1]), file_bytes=int(sys.argv[2]))
    end_with_parent()
    # Answers go to the real stdout; whatever a library prints goes where logs go.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        answers.write(json.dumps(_answer(json.loads(line))).encode() + b"\n")


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"cut": _cut, "scenes": _scenes, "inspect": _inspect}[request["do"]](request)
    except VideoError as error:
        reason = error.reason
    except MemoryError:
        reason = "decoding it needs more memory than allowed"
    except OSError as error:
        reason = f"it cannot be read ({error.strerror})"
    return Inspection(sha256="", bytes=0, reason=reason).model_dump(mode="json")


def _inspect(request: dict[str, Any]) -> dict[str, Any]:
    found = inspect_video(
        Path(request["path"]),
        check=request["check"],
        pictures=bool(request["pictures"]),
        threads=int(request["threads"]),
    )
    return found.model_dump(mode="json")


def _cut(request: dict[str, Any]) -> dict[str, Any]:
    path = Path(request["path"])
    index = build_index(path)
    return {
        "methods": [
            cut_mp4(path, Path(target), start=start, count=count, crf=request["crf"], index=index)
            for start, count, target in request["clips"]
        ]
    }


def _scenes(request: dict[str, Any]) -> dict[str, Any]:
    found = find_scenes(
        Path(request["path"]),
        threshold=float(request["threshold"]),
        min_frames=int(request["min_frames"]),
        threads=int(request["threads"]),
    )
    return {"scenes": found}


if __name__ == "__main__":
    main()
