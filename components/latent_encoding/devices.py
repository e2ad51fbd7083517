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
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from components.latent_encoding.config import LatentEncodingConfig
from components.latent_encoding.decode_worker import die_with_parent
from components.latent_encoding.engine import Counts, make_shards
from components.lib.contract import Task, UserError
from components.lib.stage import Output
from components.lib.store import ObjectStore

_Message = tuple[int, dict[str, Any] | None]


def run_on_devices(
    config: LatentEncodingConfig,
    devices: Sequence[str],
    shards: Sequence[str],
    output: Output,
    model: Path,
    task: Task,
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
        [sys.executable, "-m", "components.latent_encoding.devices"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **store_environment(store)},
        text=True,
    )
    assert child.stdin is not None
    child.stdin.write(json.dumps(job) + "\n")
    child.stdin.flush()
    return child


def store_environment(store: ObjectStore) -> dict[str, str]:
    """The environment from which a child makes the same store."""
    settings = store.settings
    environment = {
        "AWS_ENDPOINT_URL": settings.endpoint,
        "AWS_ENDPOINT_URL_S3": settings.endpoint,
        "AWS_ACCESS_KEY_ID": settings.access_key,
        "AWS_SECRET_ACCESS_KEY": settings.secret_key,
        "AWS_REGION": settings.region,
        "AWS_SESSION_TOKEN": settings.session_token,
        "SSL_CERT_FILE": settings.ca_file,
    }
    return {name: value for name, value in environment.items() if value}


def _listen(
    children: Sequence[subprocess.Popen[str]], devices: Sequence[str], task: Task
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


class _Reporter:
    """A Task that tells the parent."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.say({"advance": amount, "note": note})

    def say(self, message: Mapping[str, Any]) -> None:
        self.stream.write(json.dumps(message) + "\n")
        self.stream.flush()


def main() -> None:
    """The child: make the shards that the parent names."""
    from components.latent_encoding.stage import engine_settings, load_embeddings, prepare

    die_with_parent()
    # Whatever a library prints must not reach the parent's protocol.
    reporter = _Reporter(os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    os.sched_setaffinity(0, job["cores"])
    config = LatentEncodingConfig(**job["config"])
    store = ObjectStore.from_env()
    try:
        prepared = prepare(config, store)
        names = set(job["shards"])
        shards = [shard for shard in prepared.plan.shards if shard.name in names]
        scratch = Path(job["scratch"])
        scratch.mkdir(parents=True)
        counts = make_shards(
            shards,
            prepared.records,
            Path(job["model"]),
            engine_settings(config, job["device"]),
            Output(store, job["output"], scratch),
            load_embeddings(config, prepared.inputs, shards, store),
            reporter,
        )
        reporter.say({"counts": asdict(counts)})
    except UserError as error:
        reporter.say({"error": str(error)})


if __name__ == "__main__":
    main()
