"""Cut clips from the videos and encode them to latents.

The stage plans (`plan`), makes the shards the output does not hold yet (`engine`, one per
device), and describes what came out. Shards depend on the plan alone, so runs that are killed,
divided over pods or repeated write the same bytes under the same names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from components.latent_encoding.config import LatentEncodingConfig
from components.latent_encoding.plan import Plan, PlanSettings, ShardPlan, make_plan
from components.latent_encoding.summary import describe, load_results
from components.lib.contract import Progress, UserError
from components.lib.manifest import Manifest, digest_json, load_manifest
from components.lib.stage import Output, StageResult, StageSpec, execute
from components.lib.store import ObjectStore
from components.lib.video.records import VideoRecord, read_records

if TYPE_CHECKING:
    import torch

    from components.latent_encoding.engine import Counts

SPEC = StageSpec(name="latent_encoding", version="1", kind="latent-dataset")
CONFIG = LatentEncodingConfig


def run(config: LatentEncodingConfig, store: ObjectStore, progress: Progress) -> StageResult:
    """Make the latent data set, or with ``part_index`` a part of its shards."""
    if config.part_index is None:
        return execute(
            SPEC, config, store, progress, lambda i, o: _work(config, store, i, o, o, progress)
        )
    whole = _whole_address(config, store)
    part = f"{config.part_index}-of-{config.part_count}"

    def work(inputs: dict[str, Manifest], own: Output) -> None:
        uri = f"{config.storage_root.rstrip('/')}/{SPEC.name}/{whole}/"
        _work(config, store, inputs, Output(store, uri, own.scratch), own, progress)

    return execute(SPEC, config, store, progress, work, address=f"{whole}-part-{part}")


def _whole_address(config: LatentEncodingConfig, store: ObjectStore) -> str:
    """The address that `execute` gives the undivided run: parts put their shards there."""
    inputs = {
        name: load_manifest(ref, store).content for name, ref in config.manifest_refs().items()
    }
    return digest_json(
        {
            "stage": SPEC.name,
            "version": SPEC.version,
            "inputs": inputs,
            "config": config.deciding_fields(),
        }
    )


def _work(
    config: LatentEncodingConfig,
    store: ObjectStore,
    inputs: dict[str, Manifest],
    shared: Output,
    own: Output,
    progress: Progress,
) -> None:
    """Fill ``shared`` with shards; describe it in ``own`` (the same one for an undivided run)."""
    records = {r.sha256: r for r in read_records(inputs["videos"], store) if r.status == "ok"}
    if not records:
        raise UserError(f"{inputs['videos'].uri} lists no usable video.")
    plan = make_plan(records.values(), plan_settings(config, inputs["checkpoint"], store))
    if not plan.shards:
        reasons = "; ".join(f"{video.uri}: {video.reason}" for video in plan.skipped[:3])
        raise UserError(
            f"None of the {plan.videos} videos is long enough for a clip ({reasons}). "
            "Lower 'frames', or set length_buckets."
        )
    clips = sum(len(shard.clips) for shard in plan.shards)
    progress.log(f"latent_encoding: {clips} clips of {plan.videos} videos")
    embeddings = load_embeddings(config, inputs, plan, store)
    mine = part_of(plan.shards, config.part_index, config.part_count)
    counts = encode_all(config, inputs["checkpoint"], mine, records, shared, embeddings, progress)
    report_counts(own, counts)
    if config.part_index is not None:
        own.summary.update({"part": config.part_index, "shards": [s.name for s in mine]})
        own.put_bytes("part.json", digest_json([s.name for s in mine]).encode())
        return
    describe(config, plan, load_results(plan, shared), shared)


def plan_settings(
    config: LatentEncodingConfig, checkpoint: Manifest, store: ObjectStore
) -> PlanSettings:
    """Settings of the plan, with the tokenizer's compression read from its checkpoint."""
    tokenizer = tokenizer_config(checkpoint, store)
    if tokenizer.get("fsq_levels") is not None:
        raise UserError(
            f"{checkpoint.uri} is a discrete tokenizer. Latents are made with the continuous "
            "Cosmos-1.0-Tokenizer-CV8x8x8."
        )
    return PlanSettings(
        sizes=config.sizes,
        lengths=config.lengths,
        chunks_per_video=config.chunks_per_video,
        strategy=config.strategy,
        seed=config.seed,
        fps=config.fps,
        resize=config.resize,
        shard_bytes=config.shard_mb * 1_000_000,
        previews=config.previews,
        channels=tokenizer["latent_channels"],
        spatial=tokenizer["spatial"],
        temporal=tokenizer["temporal"],
    )


def tokenizer_config(checkpoint: Manifest, store: ObjectStore) -> dict[str, Any]:
    """The tokenizer's settings from the config.json of a canonical checkpoint."""
    import json

    from components.lib.cosmos.tokenizer_config import TokenizerConfig

    entry = checkpoint.entry("model/config.json")
    data = json.loads(store.get_bytes(checkpoint.file_uri(entry.path), sha256=entry.sha256))
    if data.get("family") != "tokenizer":
        raise UserError(
            f"{checkpoint.uri} holds a '{data.get('family')}', not a tokenizer. Give the manifest "
            "of Cosmos-1.0-Tokenizer-CV8x8x8."
        )
    return TokenizerConfig.model_validate(data["config"]).model_dump()


def part_of(shards: Sequence[ShardPlan], index: int | None, count: int) -> list[ShardPlan]:
    """The shards of one part: every ``count``-th; all of them without an index."""
    return list(shards) if index is None else list(shards[index::count])


def load_embeddings(
    config: LatentEncodingConfig, inputs: dict[str, Manifest], plan: Plan, store: ObjectStore
) -> dict[str, torch.Tensor]:
    """Embedding of each prompt by digest, for the guide's layout; empty for shards."""
    if config.layout != "guide":
        return {}
    if "prompts" not in inputs:
        raise UserError(
            "The layout 'guide' stores each clip's text embedding beside it. Give the manifest of "
            "prompt_embedding as 'prompts'."
        )
    from safetensors.torch import load

    manifest = inputs["prompts"]
    digests = {(clip.info.prompt_sha256, clip.info.video) for s in plan.shards for clip in s.clips}
    embeddings: dict[str, torch.Tensor] = {}
    for digest, video in sorted(digests, key=str):
        if digest is None:
            raise UserError(f"{video} has no prompt, and the layout 'guide' needs one per video.")
        if digest not in embeddings:
            entry = manifest.entry(f"prompts/{digest}.safetensors")
            data = store.get_bytes(manifest.file_uri(entry.path), sha256=entry.sha256)
            embeddings[digest] = load(data)["embedding"]
    return embeddings


def encode_all(
    config: LatentEncodingConfig,
    checkpoint: Manifest,
    shards: list[ShardPlan],
    records: dict[str, VideoRecord],
    output: Output,
    embeddings: dict[str, torch.Tensor],
    progress: Progress,
) -> list[Counts]:
    """Make the shards on every device. Returns what each device did."""
    from components.latent_encoding.engine import EngineSettings, make_shards
    from components.latent_encoding.shard import finished_files
    from components.lib.cosmos.model_folder import download_model

    if all(finished_files(shard, output) is not None for shard in shards):
        return []
    model = download_model(checkpoint, output.store, output.scratch / "tokenizer")
    (device,) = pick_devices(config.device)[:1]
    settings = EngineSettings(
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
    total = sum(len(shard.clips) for shard in shards)
    with progress.task("Encoding clips", total=total, unit="clips") as task:
        return [make_shards(shards, records, model, settings, output, embeddings, task)]


def pick_devices(names: str) -> list[str]:
    """The devices to use: a list by name, or for ``auto`` every GPU, else the CPU."""
    import torch

    if names != "auto":
        return [name.strip() for name in names.split(",") if name.strip()]
    if not torch.cuda.is_available():
        return ["cpu"]
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())]


def pick_dtype(name: str, device: str) -> str:
    """The dtype to compute in for ``auto``: bfloat16 on a GPU, float32 on a CPU."""
    if name != "auto":
        return name
    return "float32" if device == "cpu" else "bfloat16"


def report_counts(output: Output, counts: Sequence[Counts]) -> None:
    """Add up what the devices did, for the manifest's timing and the UI."""
    for name in ("frames_encoded", "frames_decoded", "bytes_fetched", "decoder_restarts"):
        output.timing[name] = float(sum(getattr(c, name) for c in counts))
    for name in ("decode", "decode_wait", "encode", "fetch", "store_wait"):
        output.timing[f"seconds_{name}"] = sum(getattr(c, f"seconds_{name}") for c in counts)
    longest = max((c.seconds_total for c in counts), default=0.0)
    rate = output.timing["frames_encoded"] / longest if longest else 0.0
    output.timing["frames_per_second"] = rate
    output.metrics.update(output.timing)
