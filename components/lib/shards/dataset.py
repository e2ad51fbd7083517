"""Where training samples come from: tar shards or the guide's files, in object storage or a folder.

All answer the same two questions: how many samples does each shard of a split hold, and what
are the bytes of sample i of shard s. Reading is random access on local copies (`cache`), so the
order is the sampler's choice.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

from components.lib.contract import UserError
from components.lib.manifest import Manifest, load_manifest, reference
from components.lib.shards.cache import ShardCache, ShardRef
from components.lib.shards.tar import IndexedShard
from components.lib.store import ObjectStore

Split = Literal["train", "validation"]


class SampleSource(Protocol):
    """Samples by (shard, index). Parts are raw bytes by extension."""

    def counts(self, split: Split) -> list[int]:
        """Samples in each shard of a split."""

    def shapes(self, split: Split) -> list[tuple[int, ...]]:
        """Shape of the samples of each shard; empty where that is not known."""

    def biggest(self, split: Split) -> tuple[int, int] | None:
        """(shard, index) of the sample with the most bytes; None of files that are elsewhere."""

    def read(self, split: Split, shard: int, index: int) -> tuple[str, dict[str, bytes]]:
        """(name for messages, extension -> bytes)."""


class ShardSource:
    """Samples in tar shards, local or in object storage."""

    def __init__(
        self,
        shards: list[ShardRef],
        cache: ShardCache,
        indexes: Mapping[Path, IndexedShard] | None = None,
    ) -> None:
        """``indexes``: of local tars that have been read already, which takes seconds for many."""
        self.cache = cache
        self.by_split = {
            split: [shard for shard in shards if shard.split == split and shard.samples > 0]
            for split in ("train", "validation")
        }
        self._indexes = dict(indexes or {})
        self._guard = threading.Lock()

    def counts(self, split: Split) -> list[int]:
        """Samples in each shard of a split."""
        return [shard.samples for shard in self.by_split[split]]

    def shapes(self, split: Split) -> list[tuple[int, ...]]:
        """As the manifest says."""
        return [shard.shape for shard in self.by_split[split]]

    def biggest(self, split: Split) -> tuple[int, int] | None:
        """As the headers of local tars say."""
        local = [
            (number, self._index(Path(shard.uri)))
            for number, shard in enumerate(self.by_split[split])
            if not shard.uri.startswith("s3://")
        ]
        places = [(tar.size(i), shard, i) for shard, tar in local for i in range(len(tar.samples))]
        return max(places)[1:] if places else None

    def read(self, split: Split, shard: int, index: int) -> tuple[str, dict[str, bytes]]:
        """(name for messages, extension -> bytes). Raises UserError naming a damaged shard."""
        ref = self.by_split[split][shard]

        def read(path: Path) -> tuple[str, dict[str, bytes]]:
            tar = self._index(path)
            if len(tar.samples) != ref.samples:
                raise UserError(
                    f"{ref.uri} holds {len(tar.samples)} samples where the manifest says "
                    f"{ref.samples}. Write the data set again."
                )
            key, parts = tar.read(index)
            return f"{ref.uri}:{key}", parts

        return self.cache.use(ref, read)

    def _index(self, path: Path) -> IndexedShard:
        with self._guard:
            if path not in self._indexes:
                self._indexes[path] = IndexedShard(path)
            return self._indexes[path]


class GuideSource:
    """The guide's four files per sample, each split seen as one shard.

    ``files`` maps a split to its files by their names (``0.video_latent.pth``), local or in
    object storage. Raises UserError when a sample lacks a file.
    """

    def __init__(self, files: dict[Split, dict[str, ShardRef]], cache: ShardCache) -> None:
        from components.lib.shards.guide import list_guide_samples

        self.files, self.cache = files, cache
        self.samples = {split: list_guide_samples(names) for split, names in files.items()}

    def counts(self, split: Split) -> list[int]:
        """Samples in each shard of a split."""
        return [len(self.samples[split])] if self.samples.get(split) else []

    def shapes(self, split: Split) -> list[tuple[int, ...]]:
        """Not known: nothing but the files themselves says."""
        return [() for _ in self.counts(split)]

    def biggest(self, split: Split) -> tuple[int, int] | None:
        """As local files' sizes say."""
        from components.lib.shards.guide import LATENT

        refs = [self.files[split][f"{n}.{LATENT}"] for n in self.samples.get(split, [])]
        sizes = [
            (Path(ref.uri).stat().st_size, 0, index)
            for index, ref in enumerate(refs)
            if not ref.uri.startswith("s3://")
        ]
        return max(sizes)[1:] if sizes else None

    def read(self, split: Split, shard: int, index: int) -> tuple[str, dict[str, bytes]]:
        """(name for messages, file suffix -> bytes)."""
        from components.lib.shards.guide import EMBEDDING, INFO, LATENT

        number, files = self.samples[split][index], self.files[split]
        # The fourth file, a mask of ones, says nothing.
        parts = {
            part: self.cache.read(files[f"{number}.{part}"]) for part in (INFO, EMBEDDING, LATENT)
        }
        return files[f"{number}.{LATENT}"].uri.removesuffix(f".{LATENT}"), parts


def held_out_samples(source: SampleSource) -> tuple[Split, list[tuple[int, int]]]:
    """The split that validation reads (training if none is held out) and its samples, in order."""
    split: Split = "validation" if sum(source.counts("validation")) else "train"
    counts = source.counts(split)
    return split, [(shard, index) for shard, count in enumerate(counts) for index in range(count)]


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
    if guide := _guide_folder(local):
        source = GuideSource(guide, cache)
    else:
        indexes = {tar: IndexedShard(tar) for tar in sorted(local.glob("*.tar"))}
        source = ShardSource(_shards_of(indexes), cache, indexes)
    if not source.counts("train"):
        raise UserError(f"{path} holds neither tar shards nor the guide's .pth files.")
    return source, None


def _from_manifest(
    path: str, store: ObjectStore | None, cache: ShardCache
) -> tuple[SampleSource, Manifest]:
    if store is None:
        raise UserError(f"{path} cannot be read: set AWS_ENDPOINT_URL and the AWS keys.")
    ref = reference(path)
    manifest = load_manifest(ref, store)
    if manifest.kind not in ("latent-dataset", "tokenizer-dataset"):
        raise UserError(f"{ref} is a {manifest.kind} manifest; data.path needs a data set.")
    if guide := guide_files(manifest):
        return GuideSource(guide, cache), manifest
    shards = [
        ShardRef(
            name=entry.path,
            uri=manifest.file_uri(entry.path),
            samples=int(entry.meta["samples"]),
            split=str(entry.meta.get("split") or "train"),
            sha256=entry.sha256,
            shape=tuple(entry.meta.get("shape", ())),
        )
        for entry in manifest.files
        if entry.path.endswith(".tar")
    ]
    source = ShardSource(shards, cache)
    if not source.counts("train"):
        raise UserError(f"{ref} lists no training samples.")
    return source, manifest


def largest_latent(manifest: Manifest | None) -> tuple[int, ...] | None:
    """[C, T, H, W] of the largest latent of a data set; None where no manifest tells."""
    shapes = manifest.summary.get("shapes", []) if manifest is not None else []
    latents = [tuple(int(size) for size in shape["latent_shape"]) for shape in shapes]
    return max(latents, key=math.prod, default=None)


def _guide_folder(folder: Path) -> dict[Split, dict[str, ShardRef]]:
    """The guide's files in a folder, or in ``train/`` and ``validation/`` below it; or nothing."""
    places: list[tuple[Split, Path]] = [
        ("train", folder),
        ("train", folder / "train"),
        ("validation", folder / "validation"),
    ]
    files: dict[Split, dict[str, ShardRef]] = {}
    for split, place in places:
        if any(place.glob("*.video_latent.pth")):
            files.setdefault(split, {}).update(
                {
                    path.name: ShardRef(name=path.name, uri=str(path), samples=1, split=split)
                    for path in place.iterdir()
                }
            )
    return files


def guide_files(manifest: Manifest) -> dict[Split, dict[str, ShardRef]]:
    """The guide's files that latent_encoding wrote with ``layout=guide``; or nothing."""
    files: dict[Split, dict[str, ShardRef]] = {}
    for entry in manifest.files:
        folder, _, name = entry.path.rpartition("/")
        if folder in ("train", "validation"):
            split: Split = "train" if folder == "train" else "validation"
            files.setdefault(split, {})[name] = ShardRef(
                name=entry.path,
                uri=manifest.file_uri(entry.path),
                samples=1,
                split=split,
                sha256=entry.sha256,
            )
    return files if files.get("train") else {}


def _shards_of(indexes: Mapping[Path, IndexedShard]) -> list[ShardRef]:
    return [
        ShardRef(
            name=path.name,
            uri=str(path),
            samples=len(index.samples),
            split="validation" if path.name.startswith("validation") else "train",
        )
        for path, index in indexes.items()
    ]
