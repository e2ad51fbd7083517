"""The process of one device: makes the shards that its parent (`devices`) names."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from components.latent_encoding.config import LatentEncodingConfig
from components.latent_encoding.engine import make_shards
from components.latent_encoding.stage import engine_settings, load_embeddings, prepare
from components.lib.contract import UserError
from components.lib.stage import Output
from components.lib.store import ObjectStore
from components.lib.system.child_process import die_with_parent


class _Reporter:
    """A `ProgressTask` that tells the parent."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.say({"advance": amount, "note": note})

    def say(self, message: Mapping[str, Any]) -> None:
        self.stream.write(json.dumps(message) + "\n")
        self.stream.flush()


def main() -> None:
    """The child: make the shards that the parent names."""
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
