"""Text2World 7B from prompt to frames on one GPU: 35 steps, 72 evaluations, 121 x 704 x 1280.

``python -m tests.benchmarks.gpu.sampling [text] [video]``: ``text`` measures the T5-11B encoder
alone, ``video`` the whole way (``video12``: with 12 steps). Weights are random, of the real sizes;
stages load and unload as in `components.lib.cosmos.text_to_video`, whose code this runs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from components.lib.cosmos.channels_last import use_channels_last
from components.lib.cosmos.dit import DIT_PRESETS, DiT, configure_blocks
from components.lib.cosmos.flops import dit_forward_flops
from components.lib.cosmos.sampling import SamplingConfig
from components.lib.cosmos.text import TextEncoder
from components.lib.cosmos.text_to_video import VideoRequest, make_video
from components.lib.cosmos.tokenizer import TOKENIZER_PRESETS, CosmosTokenizer
from components.lib.progress import LineProgress
from tests.benchmarks.gpu.common import PEAK_BF16, Row, header, milliseconds, peak_gib, reset, show

TOKENS = 16 * 44 * 80


class RandomT5(TextEncoder):
    """The encoder of t5-11b with random weights; every prompt has 512 tokens."""

    def __init__(self) -> None:
        from transformers import T5Config, T5EncoderModel

        config = T5Config(
            d_model=1024, d_kv=128, d_ff=65536, num_heads=128, num_layers=24, vocab_size=32128
        )
        self.device = torch.device("cuda")
        self.tokenizer: Any = type("NoTokenizer", (), {"pad_token_id": 0})
        with torch.device("meta"):
            model = T5EncoderModel(config)
        self.model = model.to(torch.bfloat16).to_empty(device="cuda").eval().requires_grad_(False)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.normal_(std=0.02)

    def tokenize(self, prompts: Sequence[str]) -> list[list[int]]:
        """512 random ids for each prompt."""
        return torch.randint(1, 32000, (len(prompts), 512)).tolist()


def text() -> Iterator[Row]:
    """Milliseconds for each distinct prompt of 512 tokens."""
    reset()
    encoder = RandomT5()
    prompts = ["prompt"] * 64
    elapsed = milliseconds(lambda: encoder.encode(prompts), repeats=3, warm_up=1) / len(prompts)
    flops = 2 * 512 * 24 * (4 * 1024 * 16384 + 2 * 1024 * 65536) + 24 * 4 * 512 * 512 * 16384
    share = flops / (elapsed / 1e3) / PEAK_BF16
    yield Row(
        "T5-11B encoder", f"{elapsed:.1f} ms a prompt", f"{share:.1%}", "989 TFLOP/s", peak_gib()
    )


def load_model() -> DiT:
    """7B with random weights in bf16 on the device, compiled."""
    with torch.device("meta"):
        model = DiT(DIT_PRESETS["7B"], seed=None)
    model = model.to(torch.bfloat16).to_empty(device="cuda").requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.02)
    model.pos_embedder.seq.copy_(torch.arange(len(model.pos_embedder.seq)))
    configure_blocks(model, compile_blocks=True)
    return model


def load_tokenizer() -> CosmosTokenizer:
    """CV8x8x8 with random weights in bf16."""
    tokenizer = CosmosTokenizer(TOKENIZER_PRESETS["CV8x8x8"]).to("cuda", torch.bfloat16).eval()
    use_channels_last(tokenizer)
    return tokenizer


def video(steps: int = 35) -> Iterator[Row]:
    """One video, everything but loading, which here is only drawing random weights."""
    reset()
    spent = {"loading": 0.0}

    def timed(load: Any) -> Any:
        def call() -> Any:
            begun = time.perf_counter()
            made = load()
            torch.cuda.synchronize()
            spent["loading"] += time.perf_counter() - begun
            return made

        return call

    begun = time.perf_counter()
    frames = make_video(
        VideoRequest(prompt="a road in the rain", sampling=SamplingConfig(steps=steps)),
        load_text=timed(RandomT5),
        load_model=timed(load_model),
        load_tokenizer=timed(load_tokenizer),
        progress=LineProgress(),
    )
    seconds = time.perf_counter() - begun - spent["loading"]
    assert frames.shape == (121, 704, 1280, 3)
    work = 2 * (steps + 1) * dit_forward_flops(DIT_PRESETS["7B"], TOKENS)
    share = work / seconds / PEAK_BF16
    note = f"loading {spent['loading']:.0f} s beside it"
    yield Row(
        f"7B Text2World, {steps} steps",
        f"{seconds:.0f} s",
        f"{share:.1%}",
        "989 TFLOP/s",
        peak_gib(),
        note,
    )


if __name__ == "__main__":
    header()
    for part in sys.argv[1:] or ["text", "video"]:
        if part == "text":
            show(text())
        else:
            show(video(int(part.removeprefix("video") or 35)))
