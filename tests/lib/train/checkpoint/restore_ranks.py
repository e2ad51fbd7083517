"""One rank that saves or restores small states in turn: ``restore_ranks.py ORDERS.json RANK``.

An order names world, the run's folder, the dimension that is cut, ranks of a node, what to do, and
the rank that cannot fetch. An order of fewer ranks leaves the others waiting. Each rank leaves
``rank-N.json`` beside the run: the files it fetched, and what came back or the error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate, Shard

from components.lib.contract import UserError
from components.lib.manifest import FileEntry
from components.lib.train.checkpoint import checkpoint
from components.lib.train.checkpoint.checkpoint import Checkpoints, DamagedCheckpoint
from components.lib.train.checkpoint.storage import FolderStorage
from components.lib.train.parallel.layout import start_processes, stop_processes
from components.lib.train.settings.config import CheckpointConfig, TrainerConfig

#: Tensors of 4 x 4, each a file of its own.
NAMES = ("model.a", "model.b", "model.c")


class Watched(FolderStorage):
    """Notes what is fetched."""

    def __init__(self, root: Path, refuses: bool) -> None:
        super().__init__(root)
        self.fetched: list[str] = []
        self.refuses = refuses

    def fetch(self, entries: Sequence[FileEntry], prefix: str, folder: Path) -> None:
        """Note it, then fetch."""
        if self.refuses and any(entry.path.endswith(".safetensors") for entry in entries):
            raise UserError("The store refused.")
        self.fetched += [entry.path for entry in entries]
        super().fetch(entries, prefix, folder)


def whole(number: int) -> torch.Tensor:
    """Tensor ``number``, of which every element is another."""
    return 16.0 * number + torch.arange(16.0).reshape(4, 4)


def main(path: Path, rank: int) -> None:
    for order in json.loads(path.read_text()):
        if rank < order["world"]:
            carry_out(order, rank)


def carry_out(order: dict[str, Any], rank: int) -> None:
    world, per_node, dim = order["world"], order["per_node"], order["dim"]
    os.environ |= {
        **{"RANK": str(rank), "WORLD_SIZE": str(world)},
        **{"LOCAL_RANK": str(rank % per_node), "LOCAL_WORLD_SIZE": str(per_node)},
    }
    # A file and not a port, as in ranks.py.
    dist.init_process_group(
        "gloo", init_method=f"file://{order['rendezvous']}", rank=rank, world_size=world
    )
    checkpoint.FILE_BYTES = 64
    layout = start_processes(TrainerConfig(accelerator="cpu"), model_parallel=False)
    place = Watched(Path(order["run"]), refuses=rank == order["refusing"])
    work = Path(order["run"]).parent / "work"  # one for all nodes, as on a shared disk
    saves = Checkpoints(place, layout, CheckpointConfig(asynchronous=False), work)
    size = 4 // world

    def views(fill: bool) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for number, name in enumerate(NAMES):
            part = whole(number).narrow(dim, rank * size, size).contiguous()
            part = part if fill else torch.full_like(part, -1)
            found[name] = DTensor.from_local(part, layout.host_flat_mesh, (Replicate(), Shard(dim)))
        return found

    report: dict[str, object] = {}
    if order["what"] == "save":
        saves.save(1, views(True), {}, "")
    else:
        tensors = views(False)
        found = saves.newest()
        assert found is not None
        try:
            saves.load(*found, tensors, rank % per_node)
            report["right"] = all(
                torch.equal(tensors[name].to_local(), wanted.to_local())  # type: ignore[attr-defined]
                for name, wanted in views(True).items()
            )
        except DamagedCheckpoint as error:
            report["damaged"] = str(error)
        except UserError as error:
            report["stopped"] = str(error)
    report["fetched"] = [name for name in place.fetched if name.endswith(".safetensors")]
    (Path(order["run"]).parent / f"rank-{rank}.json").write_text(json.dumps(report))
    stop_processes()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
