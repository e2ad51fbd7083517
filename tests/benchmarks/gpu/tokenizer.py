"""Encoding and training steps of the tokenizers on one GPU, against diffusers' blocks run eagerly.

``python -m tests.benchmarks.gpu.tokenizer encode cv dv`` measures the parts named. The training
steps are the trainer's own engine on random clips, compiled, with CUDA graphs and eager;
``cv:compiled`` measures one variant (each compiles for minutes, and again for the parity).
Agreement with the CPU in fp32 is asserted before each part is timed. Without a GPU small clips run
eagerly, to prove the command.
"""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F

from components.lib.cosmos.tokenizer.channels_last import use_channels_last
from components.lib.cosmos.tokenizer.folded import fold_encoder
from components.lib.cosmos.tokenizer.network import TOKENIZER_PRESETS, CosmosTokenizer
from components.lib.shards.dataset import Split
from components.lib.train.engine import Engine
from components.lib.train.parallel.layout import shard_model, start_processes, stop_processes
from components.lib.train.settings.config import TokenizerTrainingConfig
from components.lib.train.tasks.tokenizer import TokenizerTask
from tests.benchmarks.gpu.common import (
    Row,
    breakdown,
    header,
    milliseconds,
    peak_gib,
    relative_error,
    reset,
    show,
    spell,
)
from tests.benchmarks.gpu.random_dit import RandomSamples

ENCODE_FLOPS = 35.7e12  # 121 x 704 x 1280, CV8x8x8
PEAK = 989e12


def encode() -> Iterator[Row]:
    """CV8x8x8, 121 x 704 x 1280: frames a second."""
    plain = CosmosTokenizer(TOKENIZER_PRESETS["CV8x8x8"]).to("cuda", torch.bfloat16).eval()
    fast = copy.deepcopy(plain)
    use_channels_last(fast)
    video = (torch.rand(1, 3, 121, 704, 1280, device="cuda") * 2 - 1).bfloat16()
    with torch.no_grad():
        check_encode(plain, fast)
        reset()
        eager = milliseconds(lambda: plain.encode(video), repeats=3)
        yield _frames("encode, diffusers' blocks, eager", eager, "")
        reset()
        work = torch.compile(fast._encode_window)
        elapsed = milliseconds(lambda: work(video))
        parts = spell(breakdown(lambda: work(video)))
        yield _frames(
            "encode, channels last, compiled", elapsed, f"{eager / elapsed:.2f} x; {parts}"
        )
        pixels = torch.randint(0, 256, (1, 121, 704, 1280, 3), device="cuda", dtype=torch.uint8)
        folded = fold_encoder(copy.deepcopy(plain).float(), torch.bfloat16)
        for name, run in (
            ("encode, folded (of latent_encoding), eager", folded),
            ("the same, compiled", torch.compile(folded, dynamic=False)),
        ):
            reset()
            elapsed = milliseconds(lambda run=run: run(pixels))  # type: ignore[misc]
            yield _frames(name, elapsed, f"{eager / elapsed:.2f} x")


def check_encode(plain: CosmosTokenizer, fast: CosmosTokenizer) -> None:
    """Both bf16 forms on the GPU against the CPU in fp32."""
    video = torch.rand(1, 3, 9, 64, 96) * 2 - 1
    reference = copy.deepcopy(plain).cpu().float().encode(video)
    errors = [relative_error(m.encode(video.cuda()), reference) for m in (plain, fast)]
    print(f"parity with the CPU in fp32: plain {errors[0]:.1e}, channels last {errors[1]:.1e}")
    assert max(errors) < 5e-2, errors


def _frames(name: str, elapsed: float, note: str) -> Row:
    share = ENCODE_FLOPS / (elapsed / 1e3) / PEAK
    figure = f"{121e3 / elapsed:.0f} frames/s ({elapsed:.1f} ms)"
    return Row(name, figure, f"{share:.1%}", "989 TFLOP/s", peak_gib(), note)


def train_step(
    preset: str, variants: list[str], clip: tuple[int, int] = (33, 256)
) -> Iterator[Row]:
    """L1 loss and AdamW on clips of 33 x 256 x 256: the trainer's own step in its variants.

    Peer: diffusers' blocks run eagerly under autocast with fused AdamW. Bound: our compiled network
    and a fused AdamW in one CUDA graph, without what the trainer adds (shards, norms, metrics).
    """
    frames, side = clip
    device = "cuda" if torch.cuda.is_available() else "cpu"
    video = torch.rand(1, 3, frames, side, side, device=device) * 2 - 1
    plain = CosmosTokenizer(TOKENIZER_PRESETS[preset]).to(device)
    eager = bare_step(plain, plain, video)
    reset()
    base = milliseconds(eager, *((5, 2) if device == "cuda" else (1, 1)))
    yield Row(f"{preset} step, diffusers eager", f"{base:.1f} ms", "1.00 x", "eager", peak_gib())
    for name in variants:
        reset()
        yield trainer_step(preset, name, TRAINER_VARIANTS[name], base, clip)
    if device == "cuda" and len(variants) > 1:
        reset()
        fast = copy.deepcopy(plain)
        use_channels_last(fast)
        elapsed = milliseconds(graph_of(bare_step(fast, torch.compile(fast), video, True)))
        name = f"{preset} step, compiled in one CUDA graph (bound)"
        yield Row(name, f"{elapsed:.1f} ms", f"{base / elapsed:.2f} x", "eager", peak_gib())


#: Trainer settings by name. On a CPU, which lacks bf16 operators, only the last, in fp32.
TRAINER_VARIANTS: dict[str, dict[str, Any]] = {
    "compiled": {"compile": True, "compile_mode": "default"},
    "compiled, CUDA graphs": {"compile": True, "compile_mode": "reduce-overhead"},
    "eager": {"compile": False},
}


class RandomClips(TokenizerTask):
    """The tokenizer task on random clips, each a function of its number."""

    def _clip(self, number: int, shard: int, index: int) -> torch.Tensor:
        crop = self.config.data.task_encoder
        generator = torch.Generator().manual_seed(number)
        size = (3, crop.temporal_crop, *crop.crop)
        return torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)

    def _validation_clip(self, split: Split, pairs: Any, number: int) -> torch.Tensor:
        return self._clip(10_000 + number, 0, 0)[None].to(self.layout.device) / 127.5 - 1


def trainer_step(
    preset: str, name: str, trainer: dict[str, Any], base: float, clip: tuple[int, int]
) -> Row:
    """One variant of the trainer; ``base`` is the peer's milliseconds."""
    with clip_engine(preset, trainer, clip) as engine:
        warm_up, count = (8, 20) if torch.cuda.is_available() else (1, 2)
        for _ in range(warm_up):
            engine.train_step()
        steps = [engine.train_step() for _ in range(count)]
        elapsed = statistics.median(step["step_seconds"] for step in steps) * 1e3
        waited = statistics.median(step["data_wait_seconds"] for step in steps) * 1e3
        peak = peak_gib()
        print(f"{preset}, {name}: {elapsed:.1f} ms, {base / elapsed:.2f} x", flush=True)
        parts = f"{spell(breakdown(engine.train_step))}, data wait {waited:.1f} ms"
    share = f"{base / elapsed:.2f} x"
    return Row(f"{preset} step, trainer {name}", f"{elapsed:.1f} ms", share, "eager", peak, parts)


@contextmanager
def clip_engine(
    preset: str, trainer: dict[str, Any], clip: tuple[int, int], lr: float = 1e-4
) -> Iterator[Engine]:
    """The trainer's engine for one device on random clips, L1 loss only."""
    off = {"perceptual_weight": (0.0, 0.0), "gram_weight": (0.0, 0.0), "flow_weight": (0.0, 0.0)}
    precision = {} if torch.cuda.is_available() else {"precision": "32-true"}
    config = TokenizerTrainingConfig.model_validate(
        {
            "model": {"model": preset, **off},
            "data": {"task_encoder": {"temporal_crop": clip[0], "crop_height": clip[1]}},
            "trainer": {"gradient_clip_val": 0.0, "max_steps": 1000, **precision, **trainer},
            "optim": {"config": {"lr": lr, "adam_beta1": 0.5, "weight_decay": 0.01}},
        }
    )
    layout = start_processes(config.trainer, model_parallel=False)
    try:
        task = RandomClips(config, layout, RandomSamples(), None, None)
        task.model.to(layout.device)
        shard_model(task.model, task.units(), layout, config.trainer, task.shard_dim)
        task.after_sharding({})
        engine = Engine(config, layout, task)
        engine.start_data()
        yield engine
        engine.stop_data()
    finally:
        stop_processes()


def bare_step(
    model: CosmosTokenizer,
    run: Callable[[torch.Tensor], torch.Tensor],
    video: torch.Tensor,
    capturable: bool = False,
) -> Callable[[], None]:
    """Forward, backward and optimizer without the trainer."""
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=1e-4,
        betas=(0.5, 0.999),
        fused=video.is_cuda,
        capturable=capturable,
    )

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        # a cache of cast weights must not outlive the capture of a graph
        with torch.autocast("cuda", torch.bfloat16, video.is_cuda, not capturable):
            loss = F.l1_loss(run(video).float(), video)
        loss.backward()
        optimizer.step()

    return step


def graph_of(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(4):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


#: Largest relative errors of loss and gradient norm. Rounding to bf16 moves some of DV's codes.
NEAR = {"CV8x8x8": (2e-2, 1e-1), "DV8x16x16": (5e-2, 2e-1)}


def check_train_step(preset: str, variants: list[str]) -> str:
    """Three small steps of the trainer's variants, each with a validation, against the CPU."""
    reset()  # another tokenizer's graphs would be generalised to these sizes, which takes minutes
    clip = (9, 64)
    exact = {"precision": "32-true", "accelerator": "cpu"}
    wanted = first_steps(preset, exact, clip)
    words = []
    for name in variants:
        found = first_steps(preset, TRAINER_VARIANTS[name], clip)
        errors = [
            max(
                abs(step[part] / right[part] - 1) for step, right in zip(found, wanted, strict=True)
            )
            for part in ("loss", "validation", "grad_norm")
        ]
        words.append(
            "{}: loss {:.1e}, validation {:.1e}, gradient norm {:.1e}".format(name, *errors)
        )
        assert max(errors[:2]) < NEAR[preset][0], words
        assert errors[2] < NEAR[preset][1], words
    return f"parity of {preset} with the CPU in fp32: {'; '.join(words)}"


def first_steps(
    preset: str, trainer: dict[str, Any], clip: tuple[int, int], count: int = 3
) -> list[dict[str, float]]:
    """Metrics of the first steps, without moving the weights much."""
    steps = []
    with clip_engine(preset, trainer, clip, lr=1e-6) as engine, TemporaryDirectory() as folder:
        for step in range(count):
            values = engine.train_step()
            validation = engine.task.validation(Path(folder), step)["loss"]
            steps.append(values | {"validation": validation})
    return steps


def rows(parts: list[str]) -> Iterator[Row]:
    """The rows of the parts named."""
    cuda = torch.cuda.is_available()
    small = () if cuda else ((9, 64),)
    for part in parts:
        if part == "encode":
            yield from encode()
            continue
        name, _, variant = part.partition(":")
        preset = {"cv": "CV8x8x8", "dv": "DV8x16x16"}[name]
        variants = [variant] if variant else list(TRAINER_VARIANTS) if cuda else ["eager"]
        print(check_train_step(preset, variants), flush=True)
        yield from train_step(preset, variants, *small)


if __name__ == "__main__":
    header()
    show(rows(sys.argv[1:] or ["encode", "cv", "dv"]))
