"""The latent_encoding stage on one GPU machine: MP4 in, latent shards out, frames per second.

``python -m tests.benchmarks.gpu.latents`` makes H.264 videos of 1280 x 704 from a real clip, puts
them into an object store and runs the stage as a user does, with random CV8x8x8 weights: manifests,
download, decoding in processes, encoding, sha256, upload. Strategy ``all`` takes every frame once,
so decoding weighs most; ``random`` is the guide's 20 overlapping clips per video. Beside it, in the
same run: diffusers' encoder run eagerly on frames that are already there, and decoding alone with
the stage's own decoders. Latents of a clip are compared with the plain encoder on the CPU in fp32.

The store is SeaweedFS where its program is installed, else a stand-in in memory (`s3_memory`),
which is named in the output: then the figure says nothing of a store's own speed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load

from components.latent_encoding import stage
from components.latent_encoding.decode import DecodedClip, DecodePool, RunRequest
from components.latent_encoding.engine import default_workers
from components.lib.cosmos.formats.tiny import initial_tokenizer
from components.lib.cosmos.model_folder import load_tokenizer, save_model_folder
from components.lib.cosmos.tokenizer.config import TOKENIZER_PRESETS
from components.lib.progress import LineProgress
from components.lib.store import ObjectStore
from components.lib.store.embedded import EmbeddedStore
from components.lib.video.encode import write_mp4
from tests.benchmarks.bench_preprocess import read_whole_video, record_of, upload
from tests.benchmarks.gpu.common import (
    PEAK_BF16,
    Row,
    header,
    milliseconds,
    peak_gib,
    relative_error,
    reset,
    show,
)
from tests.benchmarks.gpu.s3_memory import memory_store

ENCODE_FLOPS = 35.7e12  # 121 x 704 x 1280


@contextlib.contextmanager
def a_store(folder: Path) -> Iterator[tuple[ObjectStore, str]]:
    """A store with the bucket ``cosmos``, and what it is."""
    if shutil.which("weed") or (Path(sys.executable).parent / "weed").is_file():
        with EmbeddedStore(folder, buckets=["cosmos"]) as server:
            client = server.client()
            yield client, "SeaweedFS"
            client.close()
    else:
        with memory_store() as client:
            client.ensure_bucket("cosmos")
            yield client, "stand-in in memory"


def make_videos(clip: Path, folder: Path, count: int, frames: int) -> list[Path]:
    """Different videos of ``frames`` frames from one clip, written by as many processes."""
    jobs = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.benchmarks.gpu.latents", "--make", str(clip)),
                *(str(folder / f"{number:03d}.mp4"), str(frames), str(number)),
            ]
        )
        for number in range(count)
    ]
    assert not any(job.wait() for job in jobs), "a video could not be made"
    return sorted(folder.glob("*.mp4"))


def make_video(clip: Path, target: Path, frames: int, number: int) -> None:
    """The clip to and fro, moved sideways by ``number`` pixels a cycle, 1280 x 704."""
    source = read_whole_video(clip).numpy()
    order = [*range(len(source)), *range(len(source) - 2, 0, -1)]
    pictures = (
        np.roll(source[order[(7 * number + at) % len(order)], :704], number + 1, axis=1)
        for at in range(frames)
    )
    write_mp4(target, pictures, 24.0, preset="ultrafast", gop=48)


def decode_alone(videos: list[Path], frames: int, length: int, size: tuple[int, int]) -> float:
    """Frames per second of the stage's decoders, end to end clips, with nobody behind them."""
    workers = default_workers()
    starts = tuple(range(0, frames - length + 1, length))
    requests = []
    for video in videos:
        path: Future[Path] = Future()
        path.set_result(video)
        requests.append(RunRequest(video, path, starts, length, None, *size, "crop"))
    done = 0
    threads = max(1, (os.cpu_count() or 1) // workers)
    ring = int(1.5 * length + 1) * size[0] * size[1] * 3
    with DecodePool(min(workers, len(videos)), ring, 300.0, threads) as pool:
        begun = time.perf_counter()
        for event in pool.run(iter(requests)):
            if isinstance(event, DecodedClip):
                done += length
                event.release()
        return done / (time.perf_counter() - begun)


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """The table."""
    length, (height, width) = options.frames, options.size
    with (
        tempfile.TemporaryDirectory() as name,
        a_store(Path(name) / "store") as (store, kind),
    ):
        folder = Path(name)
        (folder / "videos").mkdir()
        videos = make_videos(
            options.clip, folder / "videos", options.videos, length * options.clips
        )
        speed = decode_alone(videos, length * options.clips, length, (height, width))
        yield Row("decode alone", f"{speed:.0f} frames/s", "-", "-", 0.0, f"{os.cpu_count()} cores")
        config = TOKENIZER_PRESETS[options.preset]
        weights, mean, std = initial_tokenizer(config, 0)
        extra = {"latents_mean": mean, "latents_std": std}
        model = folder / "tokenizer"
        save_model_folder(model, "tokenizer", "bench", config, {**weights, **extra})
        if torch.cuda.is_available() and not options.no_peer:
            yield peer(model, (length, height, width))
        lines = b"".join(record_of(store, video, "train") for video in videos)
        inputs = {
            "videos": upload(store, "videos", "videos", {"videos.jsonl": lines}),
            "checkpoint": upload(
                store,
                "tokenizer",
                "checkpoint",
                {f"model/{path.name}": path.read_bytes() for path in model.iterdir()},
            ),
        }
        for strategy in options.strategies:
            reset()
            settings: dict[str, Any] = {
                "storage_root": "s3://cosmos/bench/runs",
                "frames": length,
                "height": height,
                "width": width,
                "strategy": strategy,
                "shard_mb": 64,
                "decode_workers": options.decode_workers,
                **inputs,
            }
            begun = time.perf_counter()
            result = stage.run(stage.LatentEncodingConfig(**settings), store, LineProgress())
            took = time.perf_counter() - begun
            assert not result.reused
            if strategy == "all":
                print(parity(store, result.manifest, model, videos), flush=True)
            yield summary(strategy, result, took, kind, length * height * width)


def summary(strategy: str, result: Any, took: float, store: str, pixels: int) -> Row:
    """The row of one run of the stage."""
    timing, metrics = result.manifest.timing, result.metrics
    rate = timing["frames_per_second"]
    flops = ENCODE_FLOPS * pixels / (121 * 704 * 1280) * metrics["samples"]
    names = ("decode", "decode_wait", "encode", "fetch", "store_wait", "first")
    parts = ", ".join(f"{name} {timing[f'seconds_{name}']:.1f} s" for name in names)
    frames = timing["frames_encoded"]
    # What is sustained begins with the first latent: until then the network is read and compiled.
    clip = frames / metrics["samples"]
    sustained = (frames - clip) / (frames / rate - timing["seconds_first"])
    return Row(
        f"latent_encoding, clips '{strategy}'",
        f"{sustained:.0f} frames/s sustained, {rate:.0f} with its start, stage {took:.1f} s for "
        f"{frames:.0f}",
        f"{flops / frames * sustained / PEAK_BF16:.1%}",
        "989 TFLOP/s",
        peak_gib(),
        f"{parts}; store: {store}",
    )


def peer(model: Path, clip: tuple[int, int, int]) -> Row:
    """diffusers' encoder blocks, eager, bf16, on frames that lie on the GPU."""
    tokenizer = load_tokenizer(model, "cuda", torch.bfloat16).requires_grad_(False)
    video = (torch.rand(1, 3, *clip, device="cuda") * 2 - 1).bfloat16()
    with torch.no_grad():
        elapsed = milliseconds(lambda: tokenizer.encode(video), repeats=3)
    rate = clip[0] * 1e3 / elapsed
    share = ENCODE_FLOPS / 121 / PEAK_BF16 * rate
    return Row(
        "diffusers' encoder alone, eager",
        f"{rate:.0f} frames/s",
        f"{share:.1%}",
        "989 TFLOP/s",
        peak_gib(),
    )


def parity(store: ObjectStore, manifest: Any, model: Path, videos: list[Path]) -> str:
    """The stage's first latent frames of a clip against the plain encoder on the CPU in fp32."""
    entry = next(e for e in manifest.files if e.path.endswith(".tar"))
    with tarfile.open(fileobj=io.BytesIO(store.get_bytes(manifest.file_uri(entry.path)))) as tar:
        members = {member.name: member for member in tar}
        name = next(name for name in members if name.endswith(".json"))
        info, data = tar.extractfile(name), tar.extractfile(name[:-4] + "safetensors")
        assert info is not None and data is not None
        facts, latent = json.loads(info.read()), load(data.read())["latent"]
    video = next(path for path in videos if facts["video"].endswith(path.name))
    shown = read_whole_video(video)[facts["start_frame"] :][:9]
    top = (shown.shape[1] - facts["height"]) // 2
    shown = shown[:, top : top + facts["height"]]
    pixels = shown.permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    tokenizer = load_tokenizer(model, "cpu", torch.float32).requires_grad_(False)
    expected = tokenizer.normalise(tokenizer.encode(pixels))[0]
    # The encoder is causal: the first latent frames depend on the first pictures alone.
    error = relative_error(latent[:, : expected.shape[1]], expected)
    assert error < 5e-2, error
    return f"parity with the plain encoder on the CPU in fp32: {error:.1e}"


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser("latents")
    parser.add_argument("--clip", type=Path, help="an MP4 of at least 704 lines and 1280 columns")
    parser.add_argument("--videos", type=int, default=16)
    parser.add_argument("--clips", type=int, default=10, help="length of a video in clips")
    parser.add_argument("--frames", type=int, default=121)
    parser.add_argument("--size", type=int, nargs=2, default=(704, 1280))
    parser.add_argument("--preset", default="CV8x8x8", choices=sorted(TOKENIZER_PRESETS))
    parser.add_argument("--decode-workers", type=int, default=0)
    parser.add_argument("--no-peer", action="store_true", help="leave diffusers' encoder out")
    parser.add_argument("--strategies", nargs="+", default=["all", "random"])
    options = parser.parse_args(arguments)
    if options.clip is None:
        from tests.benchmarks.bench_preprocess import clip_folder

        options.clip = clip_folder() / "bigbuckbunny.mp4"
    return options


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        make_video(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
        sys.exit(0)
    header()
    show(rows(parse(sys.argv[1:])))
