"""Encode every distinct prompt of a video manifest once.

Prompts are deduplicated, tokenized and put into batches of similar length (see
`components.lib.cosmos.diffusion.text`). The batches are a function of the whole set of prompts,
never of what is left to do: a resumed run repeats a batch that was cut off as a whole and writes
the bytes an undisturbed run would have written. Uploads overlap with the next batch.
"""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from components.lib.contract import Progress, UserError
from components.lib.manifest import FileEntry, Manifest, canonical_json
from components.lib.shards.latents import prompt_digest
from components.lib.stage import Output, StageResult, execute
from components.lib.store import ObjectStore
from components.prompt_embedding.config import SPEC, PromptEmbeddingConfig

if TYPE_CHECKING:
    import torch


def run(config: PromptEmbeddingConfig, store: ObjectStore, progress: Progress) -> StageResult:
    """Embed the prompts. Output: ``prompts/<sha256>.safetensors`` and ``prompts.jsonl``."""

    def work(inputs: dict[str, Manifest], output: Output) -> None:
        uses = collect_prompts(config, inputs["videos"], store)
        embed(config, inputs["checkpoint"], uses, output, progress)

    return execute(SPEC, config, store, progress, work)


def collect_prompts(
    config: PromptEmbeddingConfig, videos: Manifest, store: ObjectStore
) -> dict[str, int]:
    """Prompt -> number of usable videos that carry it (0 for those asked for by the config).

    Sorted by prompt. Raises UserError when a usable video has no prompt, or there is none at all.
    """
    from components.lib.video.records import read_records

    uses: Counter[str] = Counter()
    bare: list[str] = []
    for record in read_records(videos, store):
        if record.status != "ok":
            continue
        if not record.prompt.strip():
            bare.append(record.uri)
        else:
            uses[record.prompt] += 1
    if bare:
        raise UserError(
            f"{len(bare)} videos have no prompt, the first is {bare[0]}. Put a .txt file with the "
            "same name beside each video, or give video_discovery one prompt for all."
        )
    if not uses:
        raise UserError(f"{videos.uri} lists no usable video, so there is no prompt to embed.")
    for prompt in requested_prompts(config):
        uses[prompt] += 0
    return dict(sorted(uses.items()))


def requested_prompts(config: PromptEmbeddingConfig) -> list[str]:
    """Prompts that the config asks for on top of the videos'."""
    prompts = list(config.extra_prompts)
    if config.empty_prompt:
        prompts.append("")
    if config.negative_prompt is not None:
        prompts.append(config.negative_prompt)
    return prompts


def prompt_path(prompt: str) -> str:
    """Where a prompt's embedding lies in the output."""
    return f"prompts/{prompt_digest(prompt)}.safetensors"


def embed(
    config: PromptEmbeddingConfig,
    checkpoint: Manifest,
    uses: dict[str, int],
    output: Output,
    progress: Progress,
) -> None:
    """Write the embedding of each prompt that the output does not hold yet, then the list."""
    prompts = list(uses)
    with ThreadPoolExecutor(config.transfers) as pool:
        entries = dict(
            zip(prompts, pool.map(lambda p: output.finished(prompt_path(p)), prompts), strict=True)
        )
        left = [prompt for prompt in prompts if entries[prompt] is None]
        if left:
            progress.log(f"prompt_embedding: {len(left)} of {len(prompts)} prompts to encode")
            _encode_missing(config, checkpoint, prompts, set(left), output, progress, pool)
    lines = []
    truncated = []
    for prompt in prompts:
        entry = output.files[prompt_path(prompt)]
        tokens = int(entry.meta["tokens"])
        if tokens > 512:
            truncated.append(prompt_digest(prompt))
        lines.append(
            {
                "prompt": prompt,
                "sha256": prompt_digest(prompt),
                "path": entry.path,
                "tokens": tokens,
                "videos": uses[prompt],
            }
        )
    output.put_bytes("prompts.jsonl", b"".join(canonical_json(line) + b"\n" for line in lines))
    output.summary.update(
        {
            "prompts": len(prompts),
            "videos": sum(uses.values()),
            "embedding_dim": int(output.files[prompt_path(prompts[0])].meta["dim"]),
            "truncated": truncated,
            "negative_prompt": _digest_or_none(config.negative_prompt),
            "empty_prompt": _digest_or_none("" if config.empty_prompt else None),
        }
    )
    output.metrics.update(
        {
            "prompts": float(len(prompts)),
            "prompts_encoded": float(len(left)),
            "prompts_truncated": float(len(truncated)),
            "bytes": float(sum(entry.bytes for entry in output.files.values())),
            **output.timing,
        }
    )


def _digest_or_none(prompt: str | None) -> str | None:
    return None if prompt is None else prompt_digest(prompt)


def _encode_missing(
    config: PromptEmbeddingConfig,
    checkpoint: Manifest,
    prompts: list[str],
    left: set[str],
    output: Output,
    progress: Progress,
    pool: ThreadPoolExecutor,
) -> None:
    from components.lib.cosmos.diffusion.text import TextEncoder, plan_batches, truncate
    from components.lib.cosmos.model_folder import download_model
    from components.lib.system.device import pick_devices, pick_dtype

    started = time.monotonic()
    folder = download_model(checkpoint, output.store, output.scratch / "t5")
    fetched = time.monotonic()
    device = pick_devices(config.device)[0]
    encoder = TextEncoder(folder, device, pick_dtype(config.dtype, device))
    loaded = time.monotonic()
    tokens = encoder.tokenize(prompts)
    kept = [truncate(ids) for ids in tokens]
    encode_s = 0.0
    uploads: list[Future[FileEntry]] = []
    with progress.task("Embedding prompts", total=len(left), unit="prompts") as task:
        for batch in plan_batches([len(ids) for ids in kept], config.max_tokens):
            wanted = [position for position in batch if prompts[position] in left]
            if not wanted:
                continue
            begun = time.monotonic()
            rows = encoder.encode_tokens([kept[position] for position in batch])
            encode_s += time.monotonic() - begun
            for position, row in zip(batch, rows, strict=True):
                if prompts[position] in left:
                    meta = {"tokens": len(tokens[position]), "dim": encoder.dim}
                    path = prompt_path(prompts[position])
                    uploads.append(pool.submit(output.put_bytes, path, pack(row), meta))
            uploads = _settle(uploads, keep=4 * config.transfers)
            task.advance(len(wanted))
    encoded = time.monotonic()
    _settle(uploads, keep=0)
    output.timing.update(
        {
            "seconds_checkpoint": fetched - started,
            "seconds_load": loaded - fetched,
            "seconds_encode": encode_s,
            "seconds_store_wait": time.monotonic() - encoded,
            "prompts_per_second": len(left) / max(encode_s, 1e-9),
        }
    )


def _settle(uploads: list[Future[FileEntry]], keep: int) -> list[Future[FileEntry]]:
    """Wait for the oldest uploads until at most ``keep`` are under way; raises their errors."""
    while len(uploads) > keep:
        uploads.pop(0).result()
    return uploads


def pack(rows: torch.Tensor) -> bytes:
    """A prompt's file: ``embedding`` [512, D] bf16 with zeros past the prompt, ``length`` int64."""
    import torch
    from safetensors.torch import save

    from components.lib.cosmos.diffusion.text import MAX_TOKENS

    embedding = torch.zeros(MAX_TOKENS, rows.shape[1], dtype=torch.bfloat16)
    embedding[: len(rows)] = rows
    values: dict[str, Any] = {"embedding": embedding, "length": torch.tensor(len(rows))}
    return save(values)
