"""Makes shards on one device: fetch, decode, encode and upload at the same time.

Videos come down on a few threads, a pool of processes decodes them (`decode`), this thread feeds
the encoder (`encode`), and a writer thread uploads finished shards. Each hand-over is bounded, so
memory does not depend on how long videos are or how many there are. The frames of a forward pass
are fixed by the plan; the order in which decoding delivers them changes nothing.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from components.latent_encoding.contact_sheet import pick_frames, preview_path, preview_png
from components.latent_encoding.decode import DecodedClip, DecodePool, RunEnded, RunRequest
from components.latent_encoding.decode_worker import Frame
from components.latent_encoding.encode import LatentEncoder
from components.latent_encoding.plan import Clip, DecodeRun, ShardPlan, batches
from components.latent_encoding.shard import Failure, FileLayout, OpenShard
from components.lib.contract import ProgressTask, UserError
from components.lib.stage import Output
from components.lib.store import ObjectStore
from components.lib.store.errors import ObjectCorrupt, ObjectMissing, StoreError
from components.lib.video.container import VideoError
from components.lib.video.records import VideoRecord, fetch_video

if TYPE_CHECKING:
    import torch

# Frames of slack in a decoder's ring beyond one clip, as a part of a clip: room to go on while
# the encoder copies the clip before.
RING_SLACK = 0.5
# Shards waiting for the writer at most.
MAX_WRITES = 4


@dataclass(frozen=True)
class EngineSettings:
    """How to make shards on one device."""

    device: str
    dtype: str
    layout: FileLayout
    converted_fps: float | None
    batch_clips: int
    decode_workers: int
    decode_timeout_s: float
    downloads: int
    save_every_s: float


@dataclass
class Counts:
    """What was done and what was waited for, in seconds, on one device."""

    clips: int = 0
    frames_encoded: int = 0
    frames_decoded: int = 0
    bytes_fetched: int = 0
    decoder_restarts: int = 0
    seconds_decode: float = 0.0
    seconds_decode_wait: float = 0.0
    seconds_encode: float = 0.0
    seconds_fetch: float = 0.0
    seconds_store_wait: float = 0.0
    seconds_first: float = 0.0  # until the first latent: loading, on a GPU compiling
    seconds_total: float = 0.0


@dataclass
class _Batch:
    """One forward pass that is being filled."""

    shard: OpenShard
    clips: tuple[Clip, ...]
    frames: torch.Tensor
    missing: int
    good: list[bool] = field(default_factory=list)


@dataclass(frozen=True)
class _Tag:
    """What a decode request belongs to. ``clips`` are those asked for, in order."""

    shard: OpenShard
    run: DecodeRun
    clips: tuple[Clip, ...]
    path: Future[Path]


class Fetcher:
    """Local copies of videos: fetched on threads, shared by runs, dropped when unused."""

    def __init__(self, store: ObjectStore, folder: Path, threads: int, counts: Counts) -> None:
        self.store, self.folder, self.counts = store, folder, counts
        self.folder.mkdir(parents=True, exist_ok=True)
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="fetch")
        self.paths: dict[str, Future[Path]] = {}
        self.users: dict[str, int] = {}

    def get(self, record: VideoRecord) -> Future[Path]:
        """The local file of a video. Fails with `VideoError` when it is gone or has changed."""
        if record.sha256 not in self.paths:
            self.paths[record.sha256] = self.pool.submit(self._fetch, record)
        self.users[record.sha256] = self.users.get(record.sha256, 0) + 1
        return self.paths[record.sha256]

    def drop(self, record: VideoRecord) -> None:
        """One user less; a downloaded file without users is deleted."""
        self.users[record.sha256] -= 1
        if self.users[record.sha256]:
            return
        del self.users[record.sha256]
        future = self.paths.pop(record.sha256)
        if future.exception() is None and future.result().parent == self.folder:
            future.result().unlink()

    def close(self) -> None:
        """Stop fetching."""
        self.pool.shutdown(wait=True, cancel_futures=True)

    def _fetch(self, record: VideoRecord) -> Path:
        begun = time.monotonic()
        try:
            path = fetch_video(record, self.store, self.folder)
        except (ObjectMissing, ObjectCorrupt) as error:
            raise VideoError(record.uri, "gone or changed since discovery") from error
        except StoreError:
            raise  # the store's trouble is not the video's fault
        except UserError as error:
            raise VideoError(record.uri, str(error)) from error
        self.counts.bytes_fetched += record.bytes
        self.counts.seconds_fetch += time.monotonic() - begun
        return path


def make_shards(
    shards: Sequence[ShardPlan],
    records: Mapping[str, VideoRecord],
    model: Path,
    settings: EngineSettings,
    output: Output,
    embeddings: dict[str, torch.Tensor],
    task: ProgressTask,
) -> Counts:
    """Make these shards, none of which is finished, and return what that took.

    ``records`` maps sha256 to record; ``embeddings`` maps a prompt's digest to its embedding (for
    the guide's layout). ``task`` is advanced by one for each sample settled.
    """
    begun = time.monotonic()
    counts = Counts()
    engine = _Engine(records, model, settings, output, embeddings, task, counts)
    try:
        engine.run(shards)
    finally:
        engine.close()
    counts.seconds_total = time.monotonic() - begun
    return counts


class _Engine:
    def __init__(
        self,
        records: Mapping[str, VideoRecord],
        model: Path,
        settings: EngineSettings,
        output: Output,
        embeddings: dict[str, torch.Tensor],
        task: ProgressTask,
        counts: Counts,
    ) -> None:
        self.records, self.settings, self.output = records, settings, output
        self.model = model
        self.embeddings, self.task, self.counts = embeddings, task, counts
        self.fetcher = Fetcher(output.store, output.scratch / "videos", settings.downloads, counts)
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        self.writes: list[Future[None]] = []
        self.open: list[OpenShard] = []
        self.filling: dict[str, _Batch] = {}
        self.begun = self.saved_at = time.monotonic()

    def close(self) -> None:
        """Stop the threads. Work that was not handed to the writer is lost, as after a kill."""
        self.fetcher.close()
        self.writer.shutdown(wait=True, cancel_futures=True)
        shutil.rmtree(self.fetcher.folder, ignore_errors=True)

    def run(self, shards: Sequence[ShardPlan]) -> None:
        """Make these shards."""
        workers = self.settings.decode_workers or default_workers()
        threads = max(1, (os.cpu_count() or 1) // workers)
        timeout_s = self.settings.decode_timeout_s
        runs = sum(len(shard.runs) for shard in shards)
        with DecodePool(min(workers, runs), ring_bytes(shards), timeout_s, threads) as pool:
            # The decoders come up while the network is being read.
            settings = self.settings
            self.encoder = LatentEncoder(self.model, settings.device, settings.dtype)
            for event in pool.run(self._requests(shards)):
                if isinstance(event, DecodedClip):
                    self._take_clip(event)
                else:
                    self._end_run(event)
                self._settle(everything=False)
            self._settle(everything=True)
            self.counts.seconds_decode_wait += pool.wait_s
            self.counts.decoder_restarts += pool.restarts
        self._wait_for_writes(0)
        self.counts.seconds_encode = self.encoder.busy_s
        assert not self.open, "every sample of every shard is settled"

    def _requests(self, shards: Sequence[ShardPlan]) -> Iterator[RunRequest]:
        for plan in shards:
            shard = OpenShard(plan, self.output)
            shard.restore()
            self.task.advance(len(shard.stored) + len(shard.failed))
            self.open.append(shard)
            for run in plan.runs:
                wanted: list[Clip] = []
                for group in batches(run, self.settings.batch_clips):
                    # A forward pass is repeated whole: its bits depend on its shape.
                    if not all(shard.settled(clip) for clip in group):
                        wanted += group
                if wanted:
                    yield self._request(shard, run, tuple(wanted))
            self._finish_if_complete(shard)

    def _request(self, shard: OpenShard, run: DecodeRun, clips: tuple[Clip, ...]) -> RunRequest:
        first = clips[0].info
        path = self.fetcher.get(self.records[run.video_sha256])
        converted = first.fps != first.source_fps
        return RunRequest(
            tag=_Tag(shard, run, clips, path),
            path=path,
            starts=tuple(clip.info.start for clip in clips),
            length=first.num_frames,
            fps=self.settings.converted_fps if converted else None,
            height=first.clip_height,
            width=first.clip_width,
            resize=first.resize,
        )

    def _batch_of(self, tag: _Tag, clip: Clip) -> _Batch:
        """The forward pass that holds this clip, opened when it is its first to arrive."""
        if clip.key not in self.filling:
            size = self.settings.batch_clips
            clips = next(g for g in batches(tag.run, size) if clip in g)
            info = clip.info
            frames = self.encoder.buffer(
                len(clips), info.num_frames, info.clip_height, info.clip_width
            )
            batch = _Batch(tag.shard, clips, frames, len(clips), [False] * len(clips))
            for member in clips:
                self.filling[member.key] = batch
        return self.filling[clip.key]

    def _take_clip(self, event: DecodedClip) -> None:
        tag: _Tag = event.tag
        clip = tag.clips[event.clip]
        batch = self._batch_of(tag, clip)
        place = batch.clips.index(clip)
        self.encoder.load(batch.frames[place], event.pieces)
        if clip.preview:
            self._save_preview(clip, event)
        event.release()
        batch.good[place] = True
        self._arrived(batch)

    def _end_run(self, event: RunEnded) -> None:
        tag: _Tag = event.tag
        self.counts.frames_decoded += event.frames
        self.counts.seconds_decode += event.decode_s
        self.fetcher.drop(self.records[tag.run.video_sha256])
        if event.reason is None:
            return
        for clip in tag.clips[event.clips_done :]:
            batch = self._batch_of(tag, clip)
            if not tag.shard.settled(clip):
                tag.shard.fail(clip, Failure(event.reason, event.transient))
                self.task.advance(1, note=f"{clip.info.video}: {event.reason}")
            self._arrived(batch)

    def _arrived(self, batch: _Batch) -> None:
        """One more member of a forward pass is there, or known never to come."""
        batch.missing -= 1
        if batch.missing:
            return
        for member in batch.clips:
            del self.filling[member.key]
        if any(batch.good):
            self.encoder.submit(batch, batch.frames)
        else:
            self._finish_if_complete(batch.shard)

    def _settle(self, everything: bool) -> None:
        """Store what the encoder has finished; save segments when it is time."""
        for encoded in self.encoder.collect(everything):
            batch: _Batch = encoded.tag
            self.counts.seconds_first = self.counts.seconds_first or time.monotonic() - self.begun
            for clip, good, latent in zip(batch.clips, batch.good, encoded.latents, strict=True):
                if good and not batch.shard.settled(clip):
                    batch.shard.add(clip, latent)
                    self.counts.clips += 1
                    self.counts.frames_encoded += clip.info.num_frames
                    self.task.advance(1)
            self._finish_if_complete(batch.shard)
        if time.monotonic() - self.saved_at >= self.settings.save_every_s:
            self.saved_at = time.monotonic()
            for shard in self.open:
                if keys := shard.unsaved():
                    self._write(shard.save_segment, keys)

    def _finish_if_complete(self, shard: OpenShard) -> None:
        if shard in self.open and shard.complete:
            self.open.remove(shard)
            self._write(shard.finish, self.settings.layout, self.embeddings)

    def _save_preview(self, clip: Clip, event: DecodedClip) -> None:
        self._write(self._put_preview, preview_path(clip.key), pick_frames(event.pieces))

    def _put_preview(self, path: str, frames: list[Frame]) -> None:
        if self.output.finished(path) is None:
            self.output.put_bytes(path, preview_png(frames))

    def _write(self, function: object, *arguments: object) -> None:
        """Hand work to the writer, which does things in the order given."""
        assert callable(function)
        self._wait_for_writes(MAX_WRITES)
        self.writes.append(self.writer.submit(function, *arguments))

    def _wait_for_writes(self, left: int) -> None:
        begun = time.monotonic()
        while self.writes and (len(self.writes) > left or self.writes[0].done()):
            self.writes.pop(0).result()
        self.counts.seconds_store_wait += time.monotonic() - begun


def ring_bytes(shards: Sequence[ShardPlan]) -> int:
    """Memory of one decoder's ring: the largest clip and some frames of the next."""
    largest = 0
    for shard in shards:
        info = shard.runs[0].clips[0].info
        frames = info.num_frames + int(info.num_frames * RING_SLACK) + 1
        largest = max(largest, frames * info.clip_height * info.clip_width * 3)
    return largest


def default_workers() -> int:
    """Decoding processes for one device: all cores but one, at most eight."""
    cores = len(os.sched_getaffinity(0))
    if not cores:
        raise UserError("This process may run on no core.")
    return max(1, min(8, cores - 1))
