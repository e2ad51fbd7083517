"""Weights to start from: from a manifest or a local checkpoint to a canonical folder on this node.

One rank of each node downloads or converts; the others wait for it.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch.distributed as dist

from components.lib.contract import UserError
from components.lib.manifest import Manifest, load_manifest, reference
from components.lib.store import ObjectStore


def local_rank() -> int:
    """Rank within this node."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def fetch_model(path: str, store: ObjectStore | None, folder: Path) -> Path | None:
    """A local canonical folder for a manifest, or a local checkpoint; None for an empty path.

    A local checkpoint may have any form that can be imported (official, NeMo, diffusers,
    TorchScript archives). One rank of each node downloads or converts; the others wait.
    """
    if not path:
        return None
    if not path.startswith("s3://") and Path(path).exists() and Path(path).suffix != ".json":
        return _local_model(Path(path), folder)
    if store is None:
        raise UserError(f"{path} is not a folder, and no object store is set up to read it from.")
    from components.lib.cosmos.model_folder import download_model

    manifest = load_manifest(reference(path), store)
    target = folder / manifest.content[:16]
    if local_rank() == 0 and not _complete(target, manifest):
        download_model(manifest, store, target)
    dist.barrier()
    return target


def _local_model(path: Path, folder: Path) -> Path:
    from components.lib.cosmos.formats.importing import import_model
    from components.lib.cosmos.model_folder import is_model_folder

    if path.is_dir() and is_model_folder(path):
        return path
    target = folder / hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    if local_rank() == 0 and not is_model_folder(target):
        import_model(path, target)
    dist.barrier()
    return target


def _complete(folder: Path, manifest: Manifest) -> bool:
    """Whether every model file is there with the right digest."""
    for entry in manifest.files:
        if not entry.path.startswith("model/"):
            continue
        path = folder / entry.path.removeprefix("model/")
        if not path.is_file() or path.stat().st_size != entry.bytes:
            return False
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != entry.sha256:
                return False
    return True
