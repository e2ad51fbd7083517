"""One rank that runs several trainings after another: ``ranks.py SCENARIOS.json RANK``.

Starting processes and importing torch takes far longer than training a tiny model, so the tests of
parallel layouts start four ranks once. A scenario of fewer ranks leaves the others waiting.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import torch.distributed as dist

from components.lib.train.__main__ import parse
from components.lib.train.run import train


def main(path: Path, rank: int) -> None:
    for scenario in json.loads(path.read_text()):
        if rank >= scenario["world"]:
            continue
        folder = Path(scenario["folder"])
        if rank == 0 and scenario.get("copy_of"):
            shutil.copytree(scenario["copy_of"], folder)
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(scenario["world"]),
            "LOCAL_WORLD_SIZE": str(scenario["world"]),
            **scenario.get("env", {}),
        }
        config = parse(["--yes", *scenario["arguments"], f"log.log_dir={folder}"])
        assert config is not None
        gpu = config.trainer.accelerator == "gpu"
        # A file and not a port: ports chosen beforehand may be taken by then.
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo",
            init_method=f"file://{folder}.rendezvous",
            rank=rank,
            world_size=scenario["world"],
        )
        train(config)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
