"""What a finished latent data set holds, as manifest summary, quarantine list and contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from components.latent_encoding.config import LatentEncodingConfig
from components.latent_encoding.contact_sheet import contact_sheet, preview_path
from components.latent_encoding.plan import EncodingPlan, ShardPlan
from components.latent_encoding.shard import finished_files, index_path
from components.lib.contract import UserError
from components.lib.manifest import canonical_json
from components.lib.shards.energon import META_FOLDER, IndexedShard, write_energon_index
from components.lib.shards.tar import PartPlace, SamplePlace
from components.lib.stage import Output

# Unusable videos named in the summary; quarantine.jsonl names all of them.
MAX_LISTED = 100


@dataclass(frozen=True)
class ShardResult:
    """A shard and the lines of its index."""

    plan: ShardPlan
    lines: list[dict[str, Any]]

    @property
    def samples(self) -> int:
        """Samples it holds."""
        return sum("failed" not in line for line in self.lines)


def load_results(plan: EncodingPlan, output: Output) -> list[ShardResult]:
    """The indexes of all shards. Raises UserError when one is not finished."""
    with ThreadPoolExecutor(8) as pool:
        finished = list(pool.map(lambda shard: finished_files(shard, output), plan.shards))
    results = []
    for shard, lines in zip(plan.shards, finished, strict=True):
        if lines is None:
            raise UserError(
                f"The shard {shard.name} of {output.uri} vanished. Run the stage again."
            )
        results.append(ShardResult(shard, lines))
    return results


def describe(
    config: LatentEncodingConfig, plan: EncodingPlan, results: Sequence[ShardResult], output: Output
) -> None:
    """Write quarantine list and contact sheet, fill in summary and metrics, refuse a bad set."""
    failures = collect_failures(results)
    samples = sum(result.samples for result in results)
    by_split = {
        split: sum(r.samples for r in results if r.plan.split == split)
        for split in ("train", "validation")
    }
    check_failures(config, plan, failures, by_split, results, output)
    unusable = [
        *({"uri": v.uri, "status": "skipped", "reason": v.reason} for v in plan.skipped),
        *({"uri": uri, "status": "quarantined", **f} for uri, f in sorted(failures.items())),
    ]
    lines = b"".join(canonical_json(line) + b"\n" for line in unusable)
    output.put_bytes("quarantine.jsonl", lines)
    if config.layout == "shards":
        write_index(results, output)
    shapes = _shapes(results)
    output.summary.update(
        {
            "layout": config.layout,
            "latent_shape": shapes[0]["latent_shape"] if len(shapes) == 1 else None,
            "shapes": shapes,
            "frames": config.frames,
            "height": config.height,
            "width": config.width,
            "fps": config.fps,
            "resize": config.resize,
            "samples": samples,
            "splits": by_split,
            "videos": plan.videos,
            "skipped": [line for line in unusable if line["status"] == "skipped"][:MAX_LISTED],
            "quarantined": [{"uri": uri, **failures[uri]} for uri in sorted(failures)[:MAX_LISTED]],
            "validation": plan.validation,
        }
    )
    output.metrics.update(
        {
            "samples": float(samples),
            "validation_samples": float(by_split["validation"]),
            "videos": float(plan.videos),
            "videos_skipped": float(len(plan.skipped)),
            "videos_quarantined": float(len(failures)),
            "bytes": float(sum(entry.bytes for entry in output.files.values())),
        }
    )
    if config.previews:
        output.put_bytes("contact_sheet.png", contact_sheet(_previews(plan, results, output)))


def write_index(results: Sequence[ShardResult], output: Output) -> None:
    """Put megatron-energon's index beside the shards."""
    shards = [
        IndexedShard(f"{result.plan.name}.tar", result.plan.split, _places(result))
        for result in results
        if result.samples
    ]
    files = write_energon_index(output.scratch, shards, fields={})
    # Samples go to the loader as they are; energon's class for that wants no map of fields.
    crude = {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"}
    (output.scratch / META_FOLDER / "dataset.yaml").write_bytes(canonical_json(crude))
    for path in files:
        output.put_file(path.relative_to(output.scratch).as_posix(), path)


def _places(result: ShardResult) -> list[SamplePlace]:
    return [
        SamplePlace(
            key=line["place"]["key"],
            offset=line["place"]["offset"],
            bytes=line["place"]["bytes"],
            parts=tuple(PartPlace(**part) for part in line["place"]["parts"]),
        )
        for line in result.lines
        if "place" in line
    ]


def collect_failures(results: Sequence[ShardResult]) -> dict[str, dict[str, Any]]:
    """Video -> why it lost clips and how many."""
    failures: dict[str, dict[str, Any]] = {}
    for result in results:
        for line in result.lines:
            if "failed" in line:
                entry = failures.setdefault(
                    line["video"], {"reason": line["failed"], "clips_lost": 0}
                )
                entry["clips_lost"] += 1
    return failures


def check_failures(
    config: LatentEncodingConfig,
    plan: EncodingPlan,
    failures: dict[str, dict[str, Any]],
    by_split: dict[str, int],
    results: Sequence[ShardResult],
    output: Output,
) -> None:
    """Raise UserError when too many videos were unusable or nothing is left to train on.

    Shards that lost samples to a crash or a hang are then forgotten, so that another run tries
    them again.
    """
    allowed = config.max_bad_fraction * plan.videos
    if len(failures) <= allowed and by_split["train"]:
        return
    for result in results:
        if any(line.get("transient") for line in result.lines):
            output.store.delete(output.uri + index_path(result.plan.name))
    reasons = "; ".join(f"{uri}: {f['reason']}" for uri, f in sorted(failures.items())[:3])
    if not by_split["train"]:
        raise UserError(f"No training sample remains. Unusable videos: {reasons or 'all short'}.")
    raise UserError(
        f"{len(failures)} of {plan.videos} videos could not be used, more than max_bad_fraction "
        f"{config.max_bad_fraction:g} allows ({reasons})."
    )


def _shapes(results: Sequence[ShardResult]) -> list[dict[str, Any]]:
    """One entry per latent shape: its clip size and how many samples have it."""
    shapes: dict[tuple[int, ...], dict[str, Any]] = {}
    for result in results:
        info = result.plan.clips[0].info
        entry = shapes.setdefault(
            result.plan.shape,
            {
                "latent_shape": list(result.plan.shape),
                "frames": info.num_frames,
                "height": info.clip_height,
                "width": info.clip_width,
                "samples": 0,
            },
        )
        entry["samples"] += result.samples
    return [shapes[shape] for shape in sorted(shapes) if shapes[shape]["samples"]]


def _previews(plan: EncodingPlan, results: Sequence[ShardResult], output: Output) -> list[Any]:
    """(info, PNG) of each clip that was marked for the sheet and could be made."""
    failed = {line["key"] for r in results for line in r.lines if "failed" in line}
    chosen = [
        clip
        for shard in plan.shards
        for clip in shard.clips
        if clip.preview and clip.key not in failed
    ]
    with ThreadPoolExecutor(8) as pool:
        entries = list(pool.map(lambda clip: output.finished(preview_path(clip.key)), chosen))
        kept = [clip for clip, entry in zip(chosen, entries, strict=True) if entry is not None]
        data = list(
            pool.map(lambda c: output.store.get_bytes(output.uri + preview_path(c.key)), kept)
        )
    return [(clip.info, png) for clip, png in zip(kept, data, strict=True)]
