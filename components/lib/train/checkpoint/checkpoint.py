"""Checkpoints: written while training goes on, visible only when complete, readable at any layout.

A save has this rank's shards copied to the host (`host_copies`) and returns. A thread then has them
written as torch's distributed checkpoint (DCP) plans it, in safetensors files that are uploaded as
they come (`shard_files`), and the first rank adds the manifest last. The thread's collectives run
on a gloo group of their own, so they never interleave with training's. DCP describes each shard's
place in the global tensor, which is what lets another layout read it; safetensors headers carry
that description, so no pickle is involved. A node that resumes fetches the files which its ranks
need, shared out among them.

The trade-off: a save needs one more copy of the shards in host memory (12 bytes per parameter of
this rank), and a second save waits for the first.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException

from components.lib.contract import UserError
from components.lib.manifest import MANIFEST_NAME, FileEntry
from components.lib.run_files import METRICS
from components.lib.train.checkpoint.shard_files import (
    INDEX,
    PartialReader,
    SafetensorsWriter,
    ShardFile,
    lay_out,
)
from components.lib.train.checkpoint.storage import (
    DamagedFile,
    FolderManifest,
    Storage,
    complete_folders,
    delete_folder,
    read_folder_manifest,
)
from components.lib.train.parallel.layout import ParallelLayout
from components.lib.train.settings.config import CheckpointConfig

log = logging.getLogger("cosmos.train")
PREFIX = "checkpoints/"
#: Of one file, over all ranks: small enough that several of a rank's are on their way at once.
FILE_BYTES = 8 * 2**30
#: Files of a rank that are written, hashed and uploaded at the same time.
TRANSFERS = 4
Tensors = dict[str, torch.Tensor]


class DamagedCheckpoint(UserError):
    """A file of a checkpoint is missing or has another digest than its manifest says."""


class Checkpoints:
    """The checkpoints of one run. All methods that touch tensors are collective."""

    def __init__(
        self, storage: Storage, layout: ParallelLayout, config: CheckpointConfig, work_dir: Path
    ) -> None:
        self.storage, self.layout, self.config = storage, layout, config
        self.work_dir = work_dir
        self._group = dist.new_group(backend="gloo")
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._ready: Callable[[], None] = lambda: None
        self.bytes_written = 0

    def save(
        self,
        step: int,
        tensors: Tensors,
        state: Mapping[str, Any],
        metrics: str,
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        """Save host ``tensors`` (global views, not changed afterwards) as checkpoint ``step``.

        ``state`` is JSON and travels in the manifest; ``metrics`` is the metrics file so far.
        ``ready`` returns when the tensors hold what is to be written; the writer calls it.
        """
        self.wait()
        self._ready = ready
        arguments = (step, tensors, dict(state), metrics)
        if not self.config.asynchronous:
            self._write(*arguments)
            return
        self._thread = threading.Thread(
            target=self._write_guarded, args=arguments, name="checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Until the save in progress is complete. Raises what went wrong in it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return [_step_of(folder) for folder in complete_folders(self.storage, PREFIX)]

    def newest(self, before: str = "") -> tuple[str, FolderManifest] | None:
        """Folder and manifest of the newest complete checkpoint, as the first rank sees it.

        ``before`` leaves out that folder and newer ones.
        """
        folder = None
        if self.layout.is_main:
            folders = complete_folders(self.storage, PREFIX)
            folders = [folder for folder in folders if not before or folder < before]
            folder = folders[-1] if folders else None
        return self._agreed(folder)

    def best(self) -> tuple[str, FolderManifest] | None:
        """Folder and manifest of the complete checkpoint with the lowest held-out loss, the first
        of equal ones, as the first rank sees it. None when none was validated at its own step."""
        folder = None
        if self.layout.is_main:
            folder = self._best_of(complete_folders(self.storage, PREFIX))
        return self._agreed(folder)

    def _best_of(self, folders: list[str]) -> str | None:
        losses = {
            folder: read_folder_manifest(self.storage, folder).state.get(
                "validation_loss", math.nan
            )
            for folder in folders
        }
        known = {folder: loss for folder, loss in losses.items() if math.isfinite(loss)}
        return min(known, key=lambda folder: (known[folder], folder), default=None)

    def _agreed(self, folder: str | None) -> tuple[str, FolderManifest] | None:
        """The folder that the first rank chose, for all."""
        shared = [folder]
        dist.broadcast_object_list(shared, src=0, group=self._group)
        if shared[0] is None:
            return None
        return shared[0], read_folder_manifest(self.storage, shared[0])

    def load(self, folder: str, manifest: FolderManifest, tensors: Tensors, local_rank: int) -> str:
        """Fill host ``tensors`` from a checkpoint written at any layout.

        Each node fetches and verifies the files that its ranks need, each rank some of them.
        Returns the metrics text saved with it. Raises on every rank: DamagedCheckpoint when a file
        is missing or not what was written, another UserError when it cannot be fetched.
        """
        # Nodes may have one log folder, and ranks of a node have consecutive numbers.
        node = self.layout.rank - local_rank
        local = self.work_dir / "restore" / f"node-of-rank-{node:05d}" / Path(folder).name
        files = {entry.path: entry for entry in manifest.files}
        shards = [entry for name, entry in files.items() if name.endswith(".safetensors")]

        def make_ready() -> None:
            shutil.rmtree(local, ignore_errors=True)
            local.mkdir(parents=True)
            if INDEX in files:
                self.storage.fetch([files[INDEX]], folder, local)
                lay_out((local / INDEX).read_text(), shards, local)
            else:  # written before there was one
                self.storage.fetch(shards, folder, local)

        def fetch(wanted: set[str]) -> None:
            asked: list[Any] = [None] * self.layout.world
            dist.all_gather_object(asked, (node, sorted(wanted)), group=self._group)
            here = [names for where, names in asked if where == node]
            names = sorted(set().union(*here)) if INDEX in files else []
            mine = [files[name] for name in names[local_rank :: len(here)]]
            self._together(lambda: self.storage.fetch(mine, folder, local))

        self._together(make_ready if local_rank == 0 else lambda: None)
        reader = PartialReader(local, fetch)
        stored = set(reader.read_metadata().state_dict_metadata)
        if missing := sorted(set(tensors) - stored):
            raise UserError(
                f"Checkpoint {folder} lacks '{missing[0]}' (and {len(missing) - 1} more): it was "
                "written with other settings. Use the same ones, or another log.store_uri."
            )
        try:
            dcp.load(tensors, storage_reader=reader, process_group=self._group)
        except CheckpointException as error:
            causes = [cause for cause, _ in error.failures.values()]
            raise next((c for c in causes if isinstance(c, UserError)), error) from None
        dist.barrier(group=self._group)
        if local_rank == 0:
            shutil.rmtree(local, ignore_errors=True)
        return self.storage.get_text(folder + METRICS) or ""

    def _together(self, work: Callable[[], None]) -> None:
        """Raise on every rank what one of them finds. Damage is final, so anything else goes
        first: a store that cannot be reached says nothing about what it holds."""
        problem = ("", False)
        try:
            work()
        except UserError as error:
            problem = (str(error), isinstance(error, DamagedFile))
        problems: list[Any] = [None] * self.layout.world
        dist.all_gather_object(problems, problem, group=self._group)
        failures = sorted((final, text) for text, final in problems if text)
        if failures:
            final, text = failures[0]
            raise (DamagedCheckpoint if final else UserError)(text)

    def _write_guarded(
        self, step: int, tensors: Tensors, state: dict[str, Any], metrics: str
    ) -> None:
        try:
            self._write(step, tensors, state, metrics)
        except BaseException as error:  # noqa: BLE001 - handed to the training thread by wait()
            self._error = error

    def _write(self, step: int, tensors: Tensors, state: dict[str, Any], metrics: str) -> None:
        if self.layout.device.type == "cuda":
            # A thread starts on the node's first GPU, where DCP would open a context of its own.
            torch.cuda.set_device(self.layout.device)
        began = time.monotonic()
        self._ready()
        folder = f"{PREFIX}step-{step:08d}/"
        local = self.work_dir / "saving" / f"rank-{self.layout.rank:05d}" / f"step-{step:08d}"
        shutil.rmtree(local, ignore_errors=True)
        local.mkdir(parents=True)
        with ThreadPoolExecutor(TRANSFERS, thread_name_prefix="checkpoint") as pool:
            writer = SafetensorsWriter(
                local,
                f"shard-{self.layout.rank:05d}",
                file_of(tensors, FILE_BYTES),
                pool,
                lambda path: self.storage.put(path, folder + path.name, move=True),
            )
            dcp.save(tensors, storage_writer=writer, process_group=self._group)
            written = [file.result() for file in writer.files]
        shutil.rmtree(local)
        mine = [(file.entry.model_dump(), file.header) for file in written]
        everyone: list[Any] = [None] * self.layout.world
        dist.all_gather_object(everyone, mine, group=self._group)
        parts = [ShardFile(FileEntry.model_validate(e), h) for rank in everyone for e, h in rank]
        files = [part.entry for part in parts]
        self.bytes_written = sum(entry.bytes for entry in files)
        if self.layout.is_main:
            headers = {part.entry.path[len(folder) :]: part.header for part in parts}
            files.append(self.storage.put_text(folder + INDEX, json.dumps(headers)))
            files.append(self.storage.put_text(folder + METRICS, metrics))
            relative = tuple(
                entry.model_copy(update={"path": entry.path[len(folder) :]}) for entry in files
            )
            manifest = FolderManifest(files=relative, state={**state, "step": step})
            self.storage.put_text(folder + MANIFEST_NAME, manifest.model_dump_json(indent=1))
            size, took = self.bytes_written / 2**30, time.monotonic() - began
            log.info("checkpoint of step %d: %.2f GiB stored in %.1f s", step, size, took)
            self._prune()
        # Nobody goes on to the next save, or ends the process, before this one is complete.
        dist.barrier(group=self._group)

    def _prune(self) -> None:
        folders = complete_folders(self.storage, PREFIX)
        keep = set(folders[-self.config.save_top_k :])
        keeps_best = self.config.keep_best or self.config.export == "best"
        if keeps_best and len(folders) > len(keep) and (best := self._best_of(folders)):
            keep.add(best)
        for folder in folders:
            if folder not in keep:
                delete_folder(self.storage, folder)


def file_of(tensors: Tensors, limit: int) -> dict[str, int]:
    """Number, from 1, of the file for each tensor, in order, so that none passes ``limit`` bytes.

    A tensor larger than that has a file to itself. Counted on global sizes, which every rank knows
    and of which each writes its part: all must come to the same table.
    """
    numbers: dict[str, int] = {}
    number, filled = 1, 0
    for name, tensor in tensors.items():
        if filled and filled + tensor.nbytes > limit:
            number, filled = number + 1, 0
        filled += tensor.nbytes
        numbers[name] = number
    return numbers


def _step_of(folder: str) -> int:
    return int(folder.rstrip("/").rsplit("-", 1)[1])
