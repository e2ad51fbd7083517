"""One shard in the making: samples come in any order, the finished shard goes up in plan order.

Finished samples wait as files in the scratch folder. When a shard takes long, those that are new
since the last save go up as a segment (a small tar of their own under ``segments/``), so that a
killed run loses at most `save_every_s` of work. A complete shard is uploaded first and its index
last: the index says what the shard holds and what could not be made, and only a shard with an
index counts as finished. Its segments go then; those that a kill left behind, at the end of the
stage.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from components.latent_encoding.plan import Clip, ShardPlan
from components.lib.manifest import canonical_json
from components.lib.shards.energon import shard_index
from components.lib.shards.guide import guide_parts
from components.lib.shards.latents import (
    INFO_EXT,
    LATENT_EXT,
    TENSOR_NAME,
    latent_parts,
    parse_tensors,
)
from components.lib.shards.tar import SamplePlace, ShardWriter, iter_samples
from components.lib.stage import Output

if TYPE_CHECKING:
    import torch

FileLayout = Literal["shards", "guide"]
FAILED_EXT = "failed"
SEGMENTS = "segments/"


@dataclass(frozen=True)
class Failure:
    """Why a planned sample is missing. ``transient``: another attempt might succeed."""

    reason: str
    transient: bool = False


class OpenShard:
    """What is known about a shard that is not finished."""

    def __init__(self, plan: ShardPlan, output: Output) -> None:
        self.plan, self.output = plan, output
        self.folder = output.scratch / plan.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stored: set[str] = set()
        self.failed: dict[str, Failure] = {}
        self.saved: set[str] = set()
        self.places: dict[str, SamplePlace] = {}
        self.segments = 0

    def settled(self, clip: Clip) -> bool:
        """Whether nothing is left to do for this clip."""
        return clip.key in self.stored or clip.key in self.failed

    @property
    def complete(self) -> bool:
        """Whether every planned clip is settled."""
        return len(self.stored) + len(self.failed) == len(self.plan.clips)

    def add(self, clip: Clip, latent: torch.Tensor) -> None:
        """Take in a finished sample: ``latent`` [C, T, H, W] bf16."""
        for ext, data in latent_parts(latent, clip.info).items():
            (self.folder / f"{clip.key}.{ext}").write_bytes(data)
        self.stored.add(clip.key)

    def fail(self, clip: Clip, failure: Failure) -> None:
        """Take note that a sample cannot be made."""
        self.failed[clip.key] = failure

    def unsaved(self) -> list[str]:
        """Keys settled since the last segment; they count as saved from now on."""
        keys = sorted((self.stored | set(self.failed)) - self.saved)
        self.saved.update(keys)
        return keys

    # The methods below move bytes and run on a writer thread, one at a time for each shard.

    def save_segment(self, keys: list[str]) -> None:
        """Upload settled samples as a segment."""
        folder = self.folder / f"segment-{self.segments}"
        writer = ShardWriter(folder, prefix="", max_bytes=2**63, max_samples=2**31)
        for key in keys:
            writer.write(key, self._parts(key))
        (info,) = writer.close()
        self.output.store.put_file(info.path, f"{self._segment_prefix}{self.segments:04d}.tar")
        self.segments += 1
        shutil.rmtree(folder)

    def restore(self) -> None:
        """Take in the segments that an interrupted run left."""
        planned = {clip.key for clip in self.plan.clips}
        for info in sorted(self.output.store.list(self._segment_prefix), key=lambda i: i.uri):
            path = self.output.store.get_file(info.uri, self.folder / "segment.tar")
            with path.open("rb") as stream:
                for key, parts in iter_samples(stream):
                    if key in planned:
                        self._restore_sample(key, parts)
            path.unlink()
            self.segments += 1
        self.saved = self.stored | set(self.failed)

    def finish(self, layout: FileLayout, embeddings: dict[str, torch.Tensor]) -> None:
        """Upload the shard and its index, then drop segments and scratch files."""
        guide = layout == "guide"
        names = self._upload_guide(embeddings) if guide else self._upload_tar()
        self.output.put_bytes(
            index_path(self.plan.name),
            b"".join(canonical_json(line) + b"\n" for line in self._index(names)),
            {"samples": len(self.stored), "failed": len(self.failed)},
        )
        drop_segments(self.output, self.plan.name)
        shutil.rmtree(self.folder)

    @property
    def _segment_prefix(self) -> str:
        return f"{self.output.uri}{SEGMENTS}{self.plan.name}/"

    def _parts(self, key: str) -> dict[str, bytes | Path]:
        if key in self.failed:
            failure = self.failed[key]
            return {
                FAILED_EXT: canonical_json(
                    {"reason": failure.reason, "transient": failure.transient}
                )
            }
        return {ext: self.folder / f"{key}.{ext}" for ext in (INFO_EXT, LATENT_EXT)}

    def _restore_sample(self, key: str, parts: dict[str, bytes]) -> None:
        if FAILED_EXT in parts:
            self.failed[key] = Failure(**json.loads(parts[FAILED_EXT]))
            return
        for ext, data in parts.items():
            (self.folder / f"{key}.{ext}").write_bytes(data)
        self.stored.add(key)

    def _good_clips(self) -> list[Clip]:
        return [clip for clip in self.plan.clips if clip.key in self.stored]

    def _upload_tar(self) -> list[str]:
        clips = self._good_clips()
        if not clips:
            return []
        writer = ShardWriter(self.folder / "tar", prefix="", max_bytes=2**63, max_samples=2**31)
        for clip in clips:
            writer.write(clip.key, self._parts(clip.key))
        (info,) = writer.close()
        self.places = {place.key: place for place in info.places}
        name = f"{self.plan.name}.tar"
        self.output.put_file(name, info.path, self._meta(len(clips)))
        self.output.put_bytes(f"{name}.idx", shard_index(info.places))
        return [name, f"{name}.idx"]

    def _upload_guide(self, embeddings: dict[str, torch.Tensor]) -> list[str]:
        names: list[str] = []
        with ThreadPoolExecutor(8) as pool:
            for clip in self._good_clips():
                data = (self.folder / f"{clip.key}.{LATENT_EXT}").read_bytes()
                latent = parse_tensors(data, clip.key)[TENSOR_NAME]
                prompt = clip.info.prompt_sha256
                assert prompt is not None, "the guide layout is refused without prompts"
                parts = guide_parts(clip.index, latent, embeddings[prompt], clip.info)
                paths = [f"{self.plan.split}/{name}" for name in parts]
                meta = [{"split": self.plan.split, "sample": clip.index}] * len(paths)
                list(pool.map(self.output.put_bytes, paths, parts.values(), meta))
                names += paths
        return names

    def _meta(self, samples: int) -> dict[str, Any]:
        return {"split": self.plan.split, "samples": samples, "shape": list(self.plan.shape)}

    def _index(self, names: list[str]) -> Iterator[dict[str, Any]]:
        yield {"files": names, "split": self.plan.split, "shape": list(self.plan.shape)}
        for clip in self.plan.clips:
            line: dict[str, Any] = {"key": clip.key, "index": clip.index}
            if clip.key in self.failed:
                failure = self.failed[clip.key]
                line |= {
                    "video": clip.info.video,
                    "failed": failure.reason,
                    "transient": failure.transient,
                }
            else:
                line |= {"info": clip.info.model_dump(mode="json")}
                if clip.key in self.places:
                    line |= {"place": asdict(self.places[clip.key])}
            yield line


def drop_segments(output: Output, name: str = "") -> None:
    """Delete the segments of the shard of that name, or all there are once no shard needs them.

    A run can be killed between a shard's index and this, and the store may complete a segment that
    a killed run had sent, after the next one has looked.
    """
    prefix = f"{output.uri}{SEGMENTS}{name}/" if name else f"{output.uri}{SEGMENTS}"
    for info in list(output.store.list(prefix)):
        output.store.delete(info.uri)


def index_path(name: str) -> str:
    """Where the index of a shard lies in the output."""
    return f"index/{name}.jsonl"


def finished_files(plan: ShardPlan, output: Output) -> list[dict[str, Any]] | None:
    """The index lines of a finished shard, its files recorded in the output; None if unfinished."""
    if output.finished(index_path(plan.name)) is None:
        return None
    data = output.store.get_bytes(output.uri + index_path(plan.name))
    head, *lines = [json.loads(line) for line in data.splitlines()]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(output.finished, head["files"]))
    if any(entry is None for entry in found):
        return None
    return lines
