"""Encoding and training steps of the tokenizers on one GPU, against diffusers' blocks run eagerly.

``python -m tests.benchmarks.gpu.tokenizer encode cv dv`` measures the parts named.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from components.lib.cosmos.channels_last import use_channels_last
from components.lib.cosmos.tokenizer import TOKENIZER_PRESETS, CosmosTokenizer
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


def train_step(preset: str) -> Iterator[Row]:
    """33 x 256 x 256, L1 loss, fused AdamW: forward, backward and step."""
    plain = CosmosTokenizer(TOKENIZER_PRESETS[preset]).to("cuda")
    fast = copy.deepcopy(plain)
    use_channels_last(fast)
    video = torch.rand(1, 3, 33, 256, 256, device="cuda") * 2 - 1
    reset()
    eager = _step(plain, plain, video)
    base = milliseconds(eager, repeats=5)
    yield Row(f"{preset} step, eager", f"{base:.1f} ms", "1.00 x", "eager", peak_gib())
    reset()
    step = _step(fast, torch.compile(fast), video)
    elapsed = milliseconds(step, repeats=5, warm_up=2)
    share = f"{base / elapsed:.2f} x"
    yield Row(
        f"{preset} step, ours",
        f"{elapsed:.1f} ms",
        share,
        "eager",
        peak_gib(),
        spell(breakdown(step)),
    )


def _step(
    model: CosmosTokenizer, run: Callable[[torch.Tensor], torch.Tensor], video: torch.Tensor
) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.5, 0.999), fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            loss = F.l1_loss(run(video).float(), video)
        loss.backward()
        optimizer.step()

    return step


def rows(parts: list[str]) -> Iterator[Row]:
    """The rows of the parts named."""
    for part in parts:
        if part == "encode":
            yield from encode()
        else:
            yield from train_step({"cv": "CV8x8x8", "dv": "DV8x16x16"}[part])


if __name__ == "__main__":
    header()
    show(rows(sys.argv[1:] or ["encode", "cv", "dv"]))
