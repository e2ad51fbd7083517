"""The clips that models are measured on, streamed from a data set's shards or the guide's files.

A data set that holds nothing out (all its videos are of one drive) is measured on its training
videos, and everything that is written says so. Which clips are taken never depends on the models:
an even pick over the held-out samples, in the order of the shards. The guide's files are numbered
in that order, so both layouts of a data set give the same clips.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from components.lib.contract import UserError
from components.lib.manifest import FileEntry, Manifest, load_manifest
from components.lib.report.pictures import pick
from components.lib.shards.guide import list_guide_samples
from components.lib.shards.tar import iter_samples
from components.lib.store import ObjectStore
from components.lib.video.records import is_old, read_records

if TYPE_CHECKING:
    from components.lib.shards.cache import ShardRef
    from components.lib.shards.dataset import Split
    from components.lib.shards.latents import ClipInfo

GUIDE_CACHE_BYTES = 2**30


class HeldOut(NamedTuple):
    """The samples to measure on: ``shards``, or in ``guide`` one split with its files by name.

    ``same_video``: nothing was held out, these were trained on.
    """

    name: str
    manifest: Manifest
    shards: list[FileEntry]
    same_video: bool
    guide: dict[Split, dict[str, ShardRef]] = {}

    @property
    def samples(self) -> int:
        """How many there are."""
        in_shards = sum(int(shard.meta.get("samples", 0)) for shard in self.shards)
        return in_shards + sum(len(list_guide_samples(files)) for files in self.guide.values())


class LatentClip(NamedTuple):
    """A latent [16, T, H, W] (normalised), what it shows, the text [512, D] stored beside it (in
    the guide's layout), and what else a model may be shown, by the names of `Conditions`."""

    key: str
    latent: Any
    info: ClipInfo
    text: Any = None
    conditions: Mapping[str, Any] = {}


class VideoClip(NamedTuple):
    """An MP4 as bytes and what is known of it."""

    key: str
    mp4: bytes
    video: str
    sha256: str
    drive: str


def held_out(manifest: Manifest, name: str) -> HeldOut:
    """What to measure on. Raises UserError when the data set holds no samples at all."""
    from components.lib.shards.dataset import guide_files

    if guide := guide_files(manifest):
        split: Split = "validation" if guide.get("validation") else "train"
        return HeldOut(name, manifest, [], split == "train", {split: guide[split]})
    shards = [entry for entry in manifest.files if entry.path.endswith(".tar")]
    shards = [entry for entry in shards if int(entry.meta.get("samples", 1)) > 0]
    held = [entry for entry in shards if entry.meta.get("split") == "validation"]
    if not shards:
        raise UserError(f"{manifest.uri} holds no samples to evaluate on.")
    return HeldOut(name, manifest, held or shards, same_video=not held)


def old_contents(data: Manifest, store: ObjectStore) -> set[str]:
    """sha256 of the data set's videos that were trained on before (see video_discovery)."""
    ref = data.inputs.get("videos")
    if ref is None or store.stat(ref.uri) is None:
        return set()
    videos = load_manifest(ref.uri, store)
    if not videos.summary.get("counts", {}).get("old"):
        return set()
    return {record.sha256 for record in read_records(videos, store) if is_old(record)}


def samples(
    held: HeldOut, store: ObjectStore, scratch: Path, limit: int
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and parts of at most ``limit`` samples, spread evenly. One shard is on disk at a time."""
    total = held.samples
    wanted = set(pick(total, limit)) if total else None
    position = 0
    for shard in held.shards:
        count = int(shard.meta.get("samples", 0))
        if wanted is not None and wanted.isdisjoint(range(position, position + count)):
            position += count
            continue
        path = scratch / "shard.tar"
        store.get_file(held.manifest.file_uri(shard.path), path, sha256=shard.sha256)
        try:
            with path.open("rb") as stream:
                for key, parts in iter_samples(stream):
                    if wanted is None or position in wanted:
                        yield f"{held.name}/{shard.path}/{key}", parts
                    position += 1
        finally:
            path.unlink(missing_ok=True)


def latent_clips(
    held: HeldOut, store: ObjectStore, scratch: Path, limit: int
) -> Iterator[LatentClip]:
    """The latents to measure on."""
    from components.lib.shards.latents import parse_latent

    if held.guide:
        yield from _guide_clips(held, store, scratch, limit)
        return
    for key, parts in samples(held, store, scratch, limit):
        sample = parse_latent(parts, key)
        yield LatentClip(key, sample.latent.float(), sample.info, conditions=sample.conditions)


def _guide_clips(
    held: HeldOut, store: ObjectStore, scratch: Path, limit: int
) -> Iterator[LatentClip]:
    from components.lib.shards.cache import ShardCache
    from components.lib.shards.dataset import GuideSource
    from components.lib.shards.guide import EMBEDDING, LATENT, read_tensor

    # the files stay for the next model to be measured
    source = GuideSource(held.guide, ShardCache(scratch / "guide", GUIDE_CACHE_BYTES, store))
    (split,) = held.guide
    infos = _guide_infos(held.manifest, split, store)
    numbers = source.samples[split]
    for position in pick(len(numbers), limit):
        number = numbers[position]
        if number not in infos:
            raise UserError(
                f"{held.manifest.uri}index/ does not say which video {split}/{number} shows. "
                "Write the data set again with latent_encoding."
            )
        name, parts = source.read(split, 0, position)
        latent, text = (
            read_tensor(io.BytesIO(parts[part]), f"{name}.{part}") for part in (LATENT, EMBEDDING)
        )
        yield LatentClip(f"{held.name}/{split}/{number}", latent.float(), infos[number], text)


def _guide_infos(manifest: Manifest, split: Split, store: ObjectStore) -> dict[int, ClipInfo]:
    """Number of a sample -> what it shows, which the guide's own info tells only in part."""
    from components.lib.shards.latents import ClipInfo

    infos: dict[int, ClipInfo] = {}
    for entry in manifest.files:
        if not entry.path.startswith("index/"):
            continue
        data = store.get_bytes(manifest.file_uri(entry.path), sha256=entry.sha256)
        head, *lines = [json.loads(line) for line in data.splitlines()]
        if head["split"] == split:
            infos |= {
                line["index"]: ClipInfo.model_validate(line["info"])
                for line in lines
                if "info" in line
            }
    return infos


def video_clips(
    held: HeldOut, store: ObjectStore, scratch: Path, limit: int
) -> Iterator[VideoClip]:
    """The videos to measure on."""
    for key, parts in samples(held, store, scratch, limit):
        if "mp4" not in parts:
            raise UserError(f"{key} has no .mp4 part. The shard was not written by tar_sharding.")
        about = json.loads(parts.get("json", b"{}"))
        yield VideoClip(
            key=key,
            mp4=parts["mp4"],
            video=str(about.get("name") or about.get("uri") or key),
            sha256=str(about.get("sha256") or key),
            drive=str(about.get("drive") or ""),
        )
