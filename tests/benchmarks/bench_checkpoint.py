"""A checkpoint to a local folder against DCP's own safetensors writer with as much to do: the same
file, hashed once it is there.

It is one file (below `FILE_BYTES`), so this shows what the copy in memory costs, not what several
files at a time gain. Gigabytes per second of one rank, best of several turns; both wait for the
disk.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageWriter

from components.lib.manifest import file_sha256
from components.lib.train.checkpoint.checkpoint import FILE_BYTES, Checkpoints, file_of
from components.lib.train.checkpoint.storage import FolderStorage
from components.lib.train.parallel.layout import ParallelLayout, start_processes, stop_processes
from components.lib.train.settings.config import CheckpointConfig, TrainerConfig

Row = tuple[str, float, float, float]


def rows(short: bool = False) -> Iterator[Row]:
    """(name, our GB/s, DCP's, ratio)."""
    count, elements = (8, 2**20) if short else (32, 2**24)
    tensors = {str(number): torch.randn(elements) for number in range(count)}
    size = sum(value.nbytes for value in tensors.values()) / 1e9
    layout = start_processes(TrainerConfig(accelerator="cpu"), model_parallel=False)
    ours, peer = 0.0, 0.0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for _ in range(1 if short else 3):
            ours = max(ours, size / _timed(lambda: _ours(layout, tensors, folder / "ours")))
            peer = max(peer, size / _timed(lambda: _peer(tensors, folder / "peer")))
            shutil.rmtree(folder / "ours")
            shutil.rmtree(folder / "peer")
    stop_processes()
    yield "checkpoint of one rank to a local folder (GB/s)", ours, peer, ours / peer


def _timed(save: Callable[[], None]) -> float:
    began = time.perf_counter()
    save()
    os.sync()
    return time.perf_counter() - began


def _ours(layout: ParallelLayout, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    config = CheckpointConfig(asynchronous=False)
    Checkpoints(FolderStorage(folder), layout, config, folder / "work").save(1, tensors, {}, "")


def _peer(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    writer = HuggingFaceStorageWriter(
        str(folder), file_of(tensors, FILE_BYTES), save_distributed=True
    )
    writer.sync_files = False
    dcp.save(tensors, storage_writer=writer, process_group=dist.new_group(backend="gloo"))
    for file in folder.glob("*.safetensors"):
        file_sha256(file)
