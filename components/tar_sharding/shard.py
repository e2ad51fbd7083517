"""Making one shard: fetch its videos, write the tar, upload it with its index."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.lib.shards.energon import shard_index
from components.lib.shards.tar import SamplePlace, ShardWriter, scan_shard
from components.lib.stage import Output
from components.lib.video.container import VideoError
from components.lib.video.isolated import DecodingPool
from components.lib.video.records import VideoRecord, fetch_video
from components.tar_sharding.config import TarShardingConfig
from components.tar_sharding.plan import Item, Shard, is_mp4


@dataclass
class Made:
    """A shard that is in the store. ``failures`` are {"uri", "reason"} of videos left out."""

    shard: Shard
    places: Sequence[SamplePlace] = ()
    bytes: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)
    resumed: bool = False
    fetch_seconds: float = 0.0
    write_seconds: float = 0.0
    upload_seconds: float = 0.0

    @property
    def samples(self) -> int:
        """How many samples it holds."""
        return len(self.places)


class ShardMaker:
    """Makes the shards of one run. Its methods may be called from several threads."""

    def __init__(self, config: TarShardingConfig, output: Output, pool: DecodingPool) -> None:
        self.config, self.output, self.pool = config, output, pool

    def make(self, shard: Shard) -> Made:
        """Make a shard unless an earlier run has."""
        return self._found(shard) or self._make(shard)

    def _found(self, shard: Shard) -> Made | None:
        """A shard counts as made when its index, which is written last, is there."""
        index = self.output.finished(shard.name + ".idx")
        if index is None:
            return None
        entry = self.output.finished(shard.name)
        made = Made(shard, resumed=True)
        failures = _failures_name(shard)
        if self.output.finished(failures):
            lines = self.output.store.get_bytes(self.output.uri + failures).splitlines()
            made.failures = [json.loads(line) for line in lines]
        if entry is not None:
            with self.output.store.open_read(self.output.uri + shard.name) as stream:
                made.places = scan_shard(stream)
            made.bytes = entry.bytes
        return made

    def _make(self, shard: Shard) -> Made:
        made = Made(shard)
        folder = Path(tempfile.mkdtemp(prefix=f"{shard.number:06d}-", dir=self.output.scratch))
        try:
            self._write(shard, made, folder)
            started = time.monotonic()
            self._upload(shard, made, folder)
            made.upload_seconds = time.monotonic() - started
        finally:
            shutil.rmtree(folder)
        return made

    def _write(self, shard: Shard, made: Made, folder: Path) -> None:
        limit = 1 << 62  # the plan has set the shard's extent
        with ShardWriter(folder, max_bytes=limit, first=shard.number) as writer:
            for item in shard.items:
                started = time.monotonic()
                path = fetch_video(item.record, self.output.store, folder)
                fetched = time.monotonic()
                try:
                    samples = self._samples(item, path, folder)
                except VideoError as error:
                    made.failures.append({"uri": item.record.uri, "reason": error.reason})
                    samples = []
                for number, (mp4, info) in enumerate(samples, item.first):
                    text = json.dumps(info, sort_keys=True, ensure_ascii=False)
                    writer.write(str(number), {"mp4": mp4, "json": text.encode()})
                for used in {path, *(mp4 for mp4, _ in samples)}:
                    if used.parent == folder:
                        used.unlink()
                made.fetch_seconds += fetched - started
                made.write_seconds += time.monotonic() - fetched
        for finished in writer.shards:
            made.places, made.bytes = finished.places, finished.bytes

    def _samples(self, item: Item, path: Path, folder: Path) -> list[tuple[Path, dict[str, Any]]]:
        """The MP4 files of a video's samples with what their JSON says."""
        record = item.record
        if not item.clips and is_mp4(record):
            return [(path, _info(record, 0, record.frames, "copy"))]
        clips = item.clips or ((0, record.frames),)
        targets = [folder / f"cut-{item.first + number}.mp4" for number in range(len(clips))]
        wanted = [
            (start, count if item.clips else None, target)
            for (start, count), target in zip(clips, targets, strict=True)
        ]
        methods = self.pool.cut(
            path,
            wanted,
            crf=self.config.crf,
            timeout_s=self.config.timeout_for(record.frames),
        )
        return [
            (target, _info(record, start, count, method))
            for target, (start, count), method in zip(targets, clips, methods, strict=True)
        ]

    def _upload(self, shard: Shard, made: Made, folder: Path) -> None:
        meta = {"split": shard.split, "samples": made.samples}
        if made.failures:
            lines = [json.dumps(failure, sort_keys=True) for failure in made.failures]
            self.output.put_bytes(_failures_name(shard), "\n".join(lines).encode())
        if made.samples:
            self.output.put_file(shard.name, folder / shard.name, meta)
        self.output.put_bytes(shard.name + ".idx", shard_index(made.places))


def _failures_name(shard: Shard) -> str:
    return f"quarantine/{shard.number:06d}.jsonl"


def _info(record: VideoRecord, start: int, frames: int, method: str) -> dict[str, Any]:
    """What ``N.json`` says. Names no place on disk, so that equal videos give equal shards."""
    encoded = method == "encode"
    return {
        "name": record.name,
        "sha256": record.sha256,
        "width": record.width,
        "height": record.height,
        "fps": record.fps,
        "frames": frames,
        "start_frame": start,
        "source_frames": record.frames,
        "rotation": 0 if encoded else record.rotation,
        "codec": "h264" if encoded else record.codec,
        "method": method,
        "variable_rate": bool(record.extra.get("variable_rate")),
        "prompt": record.prompt,
        "drive": record.drive,
        "vehicle": record.vehicle,
        "split": record.split or "train",
    }
