"""One rank's part of a checkpoint: files that leave as they are written and come as needed.

torch's distributed checkpoint (DCP) plans which rank writes which shard and reads them at any
layout. Its own writer makes each file in memory a second time, one after another, and only when all
are there could they be uploaded (0.36 GiB/s a rank, seen on two H200). Here several files at a time
are written straight from the tensors, and the thread that wrote one hands it on: writing, hashing
and uploading overlap, and the disk holds only what is on its way.

For reading, DCP needs the headers of all files, and then what its plan says of some. So the headers
are kept together in one small file of the checkpoint (`INDEX`). `lay_out` makes of it files that
have their header and their length but no content, and `PartialReader` has those fetched that this
node's ranks need: with as many nodes as before that is a node's part of the state, not all of it.

The trade-off: the header that tells DCP's reader where in the global tensor a shard belongs is
written here, so a new form of it in torch would have to be followed; test_checkpoints would say so.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import futures
from torch.distributed.checkpoint import HuggingFaceStorageReader, StorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
    WriteItem,
)
from torch.distributed.checkpoint.storage import WriteResult

from components.lib.manifest import FileEntry

#: File of a checkpoint with the headers of its shard files: name -> JSON text.
INDEX = "headers.json"
#: A safetensors file begins with the length of its header, in bytes.
LENGTH = struct.Struct("<Q")


class ShardFile(NamedTuple):
    """A file that was handed on, and its header."""

    entry: FileEntry
    header: str


class SafetensorsWriter(StorageWriter):
    """Has the shards that DCP assigns to this rank written by an executor's threads.

    ``files`` are complete when their futures are, which may be after DCP has returned.
    """

    def __init__(
        self,
        folder: Path,
        prefix: str,
        file_numbers: Mapping[str, int],
        executor: Executor,
        hand_on: Callable[[Path], FileEntry],
    ) -> None:
        """``prefix``: of file names, another for each rank. ``file_numbers``: by tensor."""
        self.files: list[Future[ShardFile]] = []
        self._folder, self._prefix, self._numbers = folder, prefix, file_numbers
        self._executor, self._hand_on = executor, hand_on

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> futures.Future[list[WriteResult]]:
        """Begin to write. DCP needs no results, because each file's header describes it."""
        files: dict[int, dict[str, WriteItem]] = {}
        for item in plan.items:
            files.setdefault(self._numbers[item.index.fqn], {})[item.index.fqn] = item
        for number, items in sorted(files.items()):
            path = self._folder / f"{self._prefix}-{number:05d}.safetensors"
            tensors = {name: planner.resolve_data(item) for name, item in items.items()}
            self.files.append(self._executor.submit(self._write, path, tensors, _places(items)))
        done: futures.Future[list[WriteResult]] = futures.Future()
        done.set_result([])
        return done

    def _write(self, path: Path, tensors: dict[str, Any], places: dict[str, str]) -> ShardFile:
        save_file({name: value.contiguous() for name, value in tensors.items()}, path, places)
        with path.open("rb") as stream:
            [length] = LENGTH.unpack(stream.read(LENGTH.size))
            header = stream.read(length).decode()
        entry = self._hand_on(path)
        path.unlink(missing_ok=True)
        return ShardFile(entry, header)

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept from one save to the next."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """The folder is there already."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As DCP makes it."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """As DCP makes them."""
        return plans

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """The manifest is another's work."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Folders are given to the constructor."""
        return True


def _places(items: Mapping[str, WriteItem]) -> dict[str, str]:
    """What DCP's reader looks for: the offsets of each shard in its global tensor."""
    offsets = {}
    for name, item in items.items():
        assert item.tensor_data is not None, f"{name} is no tensor"
        offsets[name] = {"saved_offsets": list(item.tensor_data.chunk.offsets)}
    return {"DCP_SHARDING_INFO": json.dumps(offsets), "DCP_VERSION": "1.0", "format": "pt"}


class PartialReader(HuggingFaceStorageReader):
    """Has the files that this rank's part of the plan needs fetched before they are read."""

    def __init__(self, folder: Path, fetch: Callable[[set[str]], None]) -> None:
        """``fetch`` puts the files of these names into ``folder``; called once on every rank."""
        super().__init__(str(folder))
        self._fetch = fetch

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> futures.Future[None]:
        """Fetch, then read."""
        places = [self.storage_data[item.storage_index].relative_path for item in plan.items]
        self._fetch({Path(place).name for place in places})
        return super().read_data(plan, planner)


def lay_out(index: str, entries: Sequence[FileEntry], folder: Path) -> None:
    """Make of each file a hole of its length with its header. ``index``: the text of `INDEX`."""
    headers: dict[str, str] = json.loads(index)
    for entry in entries:
        header = headers[entry.path].encode()
        with (folder / entry.path).open("wb") as stream:
            stream.write(LENGTH.pack(len(header)) + header)
            stream.truncate(entry.bytes)
