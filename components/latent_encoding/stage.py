"""Cut clips from the videos and encode them to latents.

The stage plans (`plan`), makes the shards the output does not hold yet (`engine`, one per
device), and describes what came out. Shards depend on the plan alone, so runs that are killed,
divided over pods or repeated write the same bytes under the same names.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from components.latent_encoding.config import SPEC, LatentEncodingConfig
from components.latent_encoding.plan import EncodingPlan, PlanSettings, ShardPlan, make_plan
from components.latent_encoding.shard import drop_segments, finished_files
from components.latent_encoding.summary import describe, load_results
from components.lib.contract import Progress, ProgressTask, UserError
from components.lib.cosmos.tokenizer.config import TokenizerConfig
from components.lib.manifest import Manifest, canonical_json
from components.lib.stage import (
    Output,
    StageResult,
    address_of,
    execute,
    load_inputs,
    output_uri,
)
from components.lib.store import ObjectStore
from components.lib.system.device import pick_devices, pick_dtype
from components.lib.video.records import VideoRecord, read_records

if TYPE_CHECKING:
    import torch

    from components.latent_encoding.engine import Counts, EngineSettings


@dataclass(frozen=True)
class Prepared:
    """What is known before any video is opened."""

    inputs: dict[str, Manifest]
    records: dict[str, VideoRecord]
    plan: EncodingPlan


def run(config: LatentEncodingConfig, store: ObjectStore, progress: Progress) -> StageResult:
    """Make the latent data set, or with ``part_index`` a part of its shards.

    Parts put their shards where the undivided run looks for them, so that the run without a part
    that follows finds its work done and only writes the manifest.
    """
    if config.part_index is None:

        def whole(_: dict[str, Manifest], output: Output) -> None:
            prepared = prepare(config, store)
            make(config, prepared, prepared.plan.shards, output, output, progress)
            drop_segments(output)
            describe(config, prepared.plan, load_results(prepared.plan, output), output)

        return execute(SPEC, config, store, progress, whole)

    address = address_of(SPEC, config, load_inputs(config, store))
    index, count = config.part_index, config.part_count

    def part(_: dict[str, Manifest], output: Output) -> None:
        uri = output_uri(config.storage_root, SPEC.name, address)
        prepared = prepare(config, store)
        mine = prepared.plan.shards[index::count]
        make(config, prepared, mine, Output(store, uri, output.scratch), output, progress)
        names = [shard.name for shard in mine]
        output.put_bytes("part.json", canonical_json({"shards": names, "of": uri}))
        output.summary.update({"part": index, "parts": count, "shards": names})

    return execute(
        SPEC, config, store, progress, part, address=f"{address}-part-{index}-of-{count}"
    )


def prepare(config: LatentEncodingConfig, store: ObjectStore) -> Prepared:
    """Read the inputs and plan. Raises UserError when there is nothing to encode."""
    inputs = load_inputs(config, store)
    videos = inputs["videos"]
    records = [record for record in read_records(videos, store) if record.status == "ok"]
    if not records:
        raise UserError(
            f"{videos.uri} lists no usable video, so there is nothing to encode. Its "
            "quarantine.jsonl says why."
        )
    plan = make_plan(records, plan_settings(config, inputs["checkpoint"], store))
    if not plan.shards:
        reasons = "; ".join(f"{video.uri}: {video.reason}" for video in plan.skipped[:3])
        raise UserError(
            f"None of the {plan.videos} videos is long enough for a clip ({reasons}). "
            "Lower 'frames', or set 'length_buckets'."
        )
    by_content = {record.sha256: record for record in records}
    if config.layout == "guide":
        check_prompts(inputs, plan)
    return Prepared(inputs, by_content, plan)


def make(
    config: LatentEncodingConfig,
    prepared: Prepared,
    shards: Sequence[ShardPlan],
    output: Output,
    counted: Output,
    progress: Progress,
) -> None:
    """Make the shards that ``output`` does not hold yet; say in ``counted`` what that took."""
    clips = sum(len(shard.clips) for shard in shards)
    progress.log(f"latent_encoding: {clips} clips in {len(shards)} shards")
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda shard: finished_files(shard, output) is not None, shards))
    todo = [shard for shard, is_done in zip(shards, done, strict=True) if not is_done]
    counts: list[Counts] = []
    if todo:
        clips = sum(len(shard.clips) for shard in todo)
        with progress.task("Encoding clips", total=clips, unit="clips") as task:
            counts = _encode(config, prepared, todo, output, task)
    report_counts(counted, counts)


def _encode(
    config: LatentEncodingConfig,
    prepared: Prepared,
    shards: Sequence[ShardPlan],
    output: Output,
    task: ProgressTask,
) -> list[Counts]:
    from components.latent_encoding.devices import run_on_devices
    from components.latent_encoding.engine import make_shards
    from components.lib.cosmos.model_folder import download_model

    model = download_model(
        prepared.inputs["checkpoint"], output.store, output.scratch / "tokenizer"
    )
    devices = pick_devices(config.device)[: len(shards)]
    if len(devices) > 1:
        names = [shard.name for shard in shards]
        return run_on_devices(config, devices, names, output, model, task)
    settings = engine_settings(config, devices[0])
    embeddings = load_embeddings(config, prepared.inputs, shards, output.store)
    return [make_shards(shards, prepared.records, model, settings, output, embeddings, task)]


def engine_settings(config: LatentEncodingConfig, device: str) -> EngineSettings:
    """How to make shards on one device."""
    from components.latent_encoding.engine import EngineSettings

    return EngineSettings(
        device=device,
        dtype=pick_dtype(config.dtype, device),
        layout=config.layout,
        converted_fps=config.fps,
        batch_clips=config.batch_clips,
        decode_workers=config.decode_workers,
        decode_timeout_s=config.decode_timeout_s,
        downloads=config.downloads,
        save_every_s=config.save_every_s,
    )


def plan_settings(
    config: LatentEncodingConfig, checkpoint: Manifest, store: ObjectStore
) -> PlanSettings:
    """Settings of the plan, with the tokenizer's geometry read from its checkpoint."""
    tokenizer = tokenizer_config(checkpoint, store)
    if tokenizer.fsq_levels is not None:
        raise UserError(
            f"{checkpoint.uri} is a discrete tokenizer. Latents are made with the continuous "
            "Cosmos-1.0-Tokenizer-CV8x8x8."
        )
    config.check_clips(tokenizer)
    return PlanSettings(
        sizes=config.sizes,
        lengths=config.lengths,
        chunks_per_video=config.chunks_per_video,
        strategy=config.strategy,
        seed=config.seed,
        fps=config.fps,
        resize=config.resize,
        shard_bytes=config.shard_mb * 1_000_000,
        shard_samples=config.shard_samples,
        previews=config.previews,
        tokenizer=tokenizer,
    )


def tokenizer_config(checkpoint: Manifest, store: ObjectStore) -> TokenizerConfig:
    """The tokenizer's settings from the config.json of a canonical checkpoint."""
    import json

    entry = checkpoint.entry("model/config.json")
    data = json.loads(store.get_bytes(checkpoint.file_uri(entry.path), sha256=entry.sha256))
    if data.get("family") != "tokenizer":
        raise UserError(
            f"{checkpoint.uri} holds a '{data.get('family')}', not a tokenizer. Give the manifest "
            "of Cosmos-1.0-Tokenizer-CV8x8x8."
        )
    return TokenizerConfig.model_validate(data["config"])


def check_prompts(inputs: dict[str, Manifest], plan: EncodingPlan) -> None:
    """Raise UserError unless every clip's text can be stored beside it, as the guide's layout has
    it."""
    if "prompts" not in inputs:
        raise UserError(
            "The layout 'guide' stores each clip's text embedding beside it. Give the manifest of "
            "prompt_embedding as 'prompts'."
        )
    for shard in plan.shards:
        for clip in shard.clips:
            if clip.info.prompt_sha256 is None:
                raise UserError(
                    f"{clip.info.video} has no prompt, and the layout 'guide' needs one per video."
                )


def load_embeddings(
    config: LatentEncodingConfig,
    inputs: dict[str, Manifest],
    shards: Sequence[ShardPlan],
    store: ObjectStore,
) -> dict[str, torch.Tensor]:
    """Embedding of each prompt of these shards by digest, for the guide's layout; else empty."""
    if config.layout != "guide":
        return {}
    from safetensors.torch import load

    manifest = inputs["prompts"]
    embeddings: dict[str, torch.Tensor] = {}
    for digest in sorted({str(clip.info.prompt_sha256) for s in shards for clip in s.clips}):
        entry = manifest.entry(f"prompts/{digest}.safetensors")
        data = store.get_bytes(manifest.file_uri(entry.path), sha256=entry.sha256)
        embeddings[digest] = load(data)["embedding"]
    return embeddings


def report_counts(output: Output, counts: Sequence[Counts]) -> None:
    """Add up what the devices did, for the manifest's timing and the UI."""
    for name in ("frames_encoded", "frames_decoded", "bytes_fetched", "decoder_restarts"):
        output.timing[name] = float(sum(getattr(c, name) for c in counts))
    for name in ("decode", "decode_wait", "encode", "fetch", "store_wait"):
        output.timing[f"seconds_{name}"] = sum(getattr(c, f"seconds_{name}") for c in counts)
    output.timing["seconds_first"] = max((c.seconds_first for c in counts), default=0.0)
    longest = max((c.seconds_total for c in counts), default=0.0)
    rate = output.timing["frames_encoded"] / longest if longest else 0.0
    output.timing["frames_per_second"] = rate
    output.metrics.update(output.timing)
