"""The clips that models are measured on, streamed from a data set's shards.

A data set that holds nothing out (all its videos are of one drive) is measured on its training
videos, and everything that is written says so. Which clips are taken never depends on the models:
an even pick over the held-out samples, in the order of the shards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from components.lib.contract import UserError
from components.lib.manifest import FileEntry, Manifest, load_manifest
from components.lib.report.pictures import pick
from components.lib.shards.tar import iter_samples
from components.lib.store import ObjectStore
from components.lib.video.records import is_old, read_records

if TYPE_CHECKING:
    from components.lib.shards.latents import ClipInfo


class HeldOut(NamedTuple):
    """The shards to measure on. ``same_video``: nothing was held out, these were trained on."""

    name: str
    manifest: Manifest
    shards: list[FileEntry]
    same_video: bool

    @property
    def samples(self) -> int:
        """Samples in these shards."""
        return sum(int(shard.meta.get("samples", 0)) for shard in self.shards)


class LatentClip(NamedTuple):
    """A latent [16, T, H, W] (normalised) and what it shows."""

    key: str
    latent: Any
    info: ClipInfo


class VideoClip(NamedTuple):
    """An MP4 as bytes and what is known of it."""

    key: str
    mp4: bytes
    video: str
    sha256: str
    drive: str


def held_out(manifest: Manifest, name: str) -> HeldOut:
    """What to measure on. Raises UserError when the data set holds no samples at all."""
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

    for key, parts in samples(held, store, scratch, limit):
        latent, info = parse_latent(parts, key)
        yield LatentClip(key, latent.float(), info)


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
