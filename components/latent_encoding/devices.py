"""Several GPUs of one pod: one process each, every one with its own share of the shards.

Shards do not depend on each other, so the processes share nothing but the store. The parent hands
out the work, adds up progress and counts, and ends all of them when one fails. A child works out
the plan again from the same manifests and takes its shards by name.

Protocol: the parent writes one JSON line to the child's input; the child answers with JSON lines
``{"advance": n, "note": …}``, and at its end ``{"counts": {…}}`` or ``{"error": sentence}``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from components.latent_encoding.config import LatentEncodingConfig
from components.latent_encoding.engine import Counts
from components.lib.contract import ProgressTask, UserError
from components.lib.stage import Output
from components.lib.store import ObjectStore

_Message = tuple[int, dict[str, Any] | None]


def run_on_devices(
    config: LatentEncodingConfig,
    devices: Sequence[str],
    shards: Sequence[str],
    output: Output,
    model: Path,
    task: ProgressTask,
) -> list[Counts]:
    """Make the shards named, every device its share. Raises UserError when a process fails."""
    children = []
    try:
        for position, device in enumerate(devices):
            job = {
                "config": config.model_dump(mode="json"),
                "device": device,
                "shards": list(shards[position :: len(devices)]),
                "output": output.uri,
                "scratch": str(output.scratch / f"device-{position}"),
                "model": str(model),
                "cores": _cores(position, len(devices)),
            }
            children.append(_start(job, output.store))
        return _listen(children, devices, task)
    finally:
        for child in children:
            child.kill()
            child.wait()


def _cores(position: int, count: int) -> list[int]:
    """The cores of one device's process, decoders included: neighbours do not crowd each other."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[position::count] or cores


def _start(job: Mapping[str, Any], store: ObjectStore) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-m", "components.latent_encoding.device_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **store.settings.environment()},
        text=True,
    )
    assert child.stdin is not None
    child.stdin.write(json.dumps(job) + "\n")
    child.stdin.flush()
    return child


def _listen(
    children: Sequence[subprocess.Popen[str]], devices: Sequence[str], task: ProgressTask
) -> list[Counts]:
    messages: SimpleQueue[_Message] = SimpleQueue()
    for position, child in enumerate(children):
        assert child.stdout is not None
        threading.Thread(target=_pump, args=(position, child.stdout, messages), daemon=True).start()
    counts: dict[int, Counts] = {}
    running = set(range(len(children)))
    while running:
        position, message = messages.get()
        if message is None:
            running.discard(position)
            if position not in counts:
                status = children[position].wait()
                raise UserError(
                    f"The encoding process on {devices[position]} ended with status {status} "
                    "(-9: killed, most often for lack of memory). Its output is above; what is "
                    "finished is kept, so run the stage again."
                )
        elif "error" in message:
            raise UserError(message["error"])
        elif "counts" in message:
            counts[position] = Counts(**message["counts"])
        else:
            task.advance(message["advance"], message["note"])
    return [counts[position] for position in sorted(counts)]


def _pump(position: int, stream: IO[str], messages: SimpleQueue[_Message]) -> None:
    for line in stream:
        messages.put((position, json.loads(line)))
    messages.put((position, None))
