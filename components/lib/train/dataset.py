"""Where training samples come from: a manifest's shards, a folder of tars, or the guide's files.

All three answer the same two questions: how many samples does each shard of a split hold, and what
are the bytes of sample i of shard s. Reading is random access on local copies (`cache`), so the
order is free (`order`).
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Literal, Protocol

from components.lib.contract import UserError
from components.lib.manifest import MANIFEST_NAME, Manifest, load_manifest
from components.lib.store import ObjectStore
from components.lib.train.cache import ShardCache, ShardRef, TarIndex

Split = Literal["train", "validation"]


class SampleSource(Protocol):
    """Samples by (shard, index). Parts are raw bytes by extension."""

    def counts(self, split: Split) -> list[int]:
        """Samples in each shard of a split."""

    def read(self, split: Split, shard: int, index: int) -> tuple[str, dict[str, bytes]]:
        """(name for messages, extension -> bytes)."""


class ShardSource:
    """Samples in tar shards, local or in object storage."""

    def __init__(self, shards: list[ShardRef], cache: ShardCache) -> None:
        self.cache = cache
        self.by_split = {
            split: [shard for shard in shards if shard.split == split and shard.samples > 0]
            for split in ("train", "validation")
        }
        self._indexes: dict[Path, TarIndex] = {}
        self._guard = threading.Lock()

    def counts(self, split: Split) -> list[int]:
        """Samples in each shard of a split."""
        return [shard.samples for shard in self.by_split[split]]

    def read(self, split: Split, shard: int, index: int) -> tuple[str, dict[str, bytes]]:
        """(name for messages, extension -> bytes). Raises UserError naming a damaged shard."""
        ref = self.by_split[split][shard]
        for _ in range(3):
            path = self.cache.path(ref)
            try:
                tar = self._index(path)
                if len(tar.samples) != ref.samples:
                    raise UserError(
                        f"{ref.uri} holds {len(tar.samples)} samples where the manifest says "
                        f"{ref.samples}. Write the data set again."
                    )
                key, parts = tar.read(index)
                return f"{ref.uri}:{key}", parts
            except FileNotFoundError:
                # Another process made room between our look-up and our read.
                continue
        raise UserError(
            f"{ref.uri} vanished from the shard cache three times: raise data.cache_gib."
        )

    def _index(self, path: Path) -> TarIndex:
        with self._guard:
            if path not in self._indexes:
                self._indexes[path] = TarIndex(path)
            return self._indexes[path]


class GuideSource:
    """The guide's folder of ``.pth`` files, seen as one shard. It has no validation split."""

    def __init__(self, folder: Path) -> None:
        from components.lib.shards.guide import list_guide_samples

        self.folder = folder
        self.samples = list_guide_samples(path.name for path in folder.iterdir())

    def counts(self, split: Split) -> list[int]:
        """Samples in each shard of a split."""
        return [len(self.samples)] if split == "train" else []

    def read(self, split: Split, shard: int, index: int) -> tuple[str, dict[str, bytes]]:
        """(name for messages, file suffix -> bytes)."""
        from components.lib.shards.guide import PARTS

        number = self.samples[index]
        parts = {part: (self.folder / f"{number}.{part}").read_bytes() for part in PARTS}
        return str(self.folder / str(number)), parts


def open_source(
    path: str, store: ObjectStore | None, *, cache_dir: Path, max_bytes: int
) -> tuple[SampleSource, Manifest | None]:
    """The data set at ``path``: a manifest (URI or file), a folder of tars, or a guide folder.

    Raises UserError when there is nothing to train on.
    """
    if not path:
        raise UserError("data.path is empty. Give the manifest of a data set, or a folder.")
    local = Path(path)
    cache = ShardCache(cache_dir, max_bytes, store)
    if path.startswith("s3://") or local.is_file():
        return _from_manifest(path, store, cache)
    if not local.is_dir():
        raise UserError(f"data.path: there is no file or folder {path}.")
    source: SampleSource
    if any(local.glob("*.video_latent.pth")):
        source = GuideSource(local)
    else:
        source = ShardSource(_folder_shards(local), cache)
    if not source.counts("train"):
        raise UserError(f"{path} holds neither tar shards nor the guide's .pth files.")
    return source, None


def _from_manifest(
    path: str, store: ObjectStore | None, cache: ShardCache
) -> tuple[SampleSource, Manifest]:
    if store is None:
        raise UserError(f"{path} cannot be read: set AWS_ENDPOINT_URL and the AWS keys.")
    ref = path if path.endswith(".json") else path.rstrip("/") + "/" + MANIFEST_NAME
    manifest = load_manifest(ref, store)
    if manifest.kind not in ("latent-dataset", "tokenizer-dataset"):
        raise UserError(f"{ref} is a {manifest.kind} manifest; data.path needs a data set.")
    shards = [
        ShardRef(
            name=entry.path,
            uri=manifest.file_uri(entry.path),
            samples=int(entry.meta["samples"]),
            split=str(entry.meta.get("split") or "train"),
            sha256=entry.sha256,
        )
        for entry in manifest.files
        if entry.path.endswith(".tar")
    ]
    source = ShardSource(shards, cache)
    if not source.counts("train"):
        raise UserError(f"{ref} lists no training samples.")
    return source, manifest


def _folder_shards(folder: Path) -> list[ShardRef]:
    return [
        ShardRef(
            name=path.name,
            uri=str(path),
            samples=len(TarIndex(path).samples),
            split="validation" if path.name.startswith("validation") else "train",
        )
        for path in sorted(folder.glob("*.tar"))
    ]
