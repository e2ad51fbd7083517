"""Text2World from prompt to frames on one GPU: 7B, 35 steps, 72 evaluations, 121 x 704 x 1280.

``python -m tests.benchmarks.gpu.sampling [text] [video] [video12] [--attention flash4]``: ``text``
measures the T5-11B encoder alone, ``video`` the whole way (``video12``: with 12 steps). Weights are
random, of the real sizes; stages load and unload as in
`components.lib.cosmos.diffusion.text_to_video`, whose code this runs. Before the video, a small one
made on the GPU in bf16 is compared with the CPU in fp32, latent and frames. Without a GPU small
networks run, to prove the command.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, get_args

import torch

from components.lib.cosmos.conditions import Conditions
from components.lib.cosmos.diffusion.sampling import SamplingConfig
from components.lib.cosmos.diffusion.text import TextEncoder
from components.lib.cosmos.diffusion.text_to_video import (
    VideoRequest,
    decode_frames,
    make_video,
    sample_latent,
)
from components.lib.cosmos.dit.attention import AttentionBackend, choose
from components.lib.cosmos.dit.network import DIT_PRESETS, DiT, configure_blocks
from components.lib.cosmos.flops import dit_forward_flops
from components.lib.cosmos.formats.tiny import initial_tokenizer
from components.lib.cosmos.inference import speed_up_dit, speed_up_tokenizer
from components.lib.cosmos.tokenizer.network import TOKENIZER_PRESETS, CosmosTokenizer
from components.lib.progress import LineProgress
from tests.benchmarks.gpu.common import (
    PEAK_BF16,
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

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
MODEL, TOKENIZER = ("7B", "CV8x8x8") if CUDA else ("tiny", "tiny-cv")
CLIP = (121, 704, 1280) if CUDA else (9, 64, 96)
DTYPE = torch.bfloat16 if CUDA else torch.float32
GRID = TOKENIZER_PRESETS[TOKENIZER].latent_shape(*CLIP)[1:]
TOKENS = math.prod(DIT_PRESETS[MODEL].grid(*GRID))


class RandomT5(TextEncoder):
    """The encoder of t5-11b (a tiny one on a CPU) with random weights; prompts of 512 tokens."""

    def __init__(self) -> None:
        from transformers import T5Config, T5EncoderModel

        wide: dict[str, int] = {"d_kv": 128, "d_ff": 65536, "num_heads": 128, "num_layers": 24}
        small = {"d_kv": 16, "d_ff": 64, "num_heads": 2, "num_layers": 2}
        width = 1024 if CUDA else DIT_PRESETS[MODEL].text_dim
        config = T5Config(d_model=width, vocab_size=32128, **(wide if CUDA else small))
        self.device = torch.device(DEVICE)
        self.tokenizer: Any = type("NoTokenizer", (), {"pad_token_id": 0})
        with torch.device("meta"):
            model = T5EncoderModel(config)
        self.model = model.to(DTYPE).to_empty(device=DEVICE).eval().requires_grad_(False)
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
    prompts = ["prompt"] * (64 if CUDA else 2)
    elapsed = milliseconds(lambda: encoder.encode(prompts), repeats=3, warm_up=1) / len(prompts)
    flops = 2 * 512 * 24 * (4 * 1024 * 16384 + 2 * 1024 * 65536) + 24 * 4 * 512 * 512 * 16384
    share = flops / (elapsed / 1e3) / PEAK_BF16
    name = "T5-11B encoder" if CUDA else "tiny T5 encoder"
    shown = f"{share:.1%}" if CUDA else "-"
    yield Row(name, f"{elapsed:.1f} ms a prompt", shown, "989 TFLOP/s", peak_gib())


def load_model(attention: AttentionBackend) -> DiT:
    """The DiT with random weights on the device, compiled there."""
    with torch.device("meta"):
        model = DiT(DIT_PRESETS[MODEL], seed=None)
    model = model.to(DTYPE).to_empty(device=DEVICE).requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.02)
    model.pos_embedder.seq.copy_(torch.arange(len(model.pos_embedder.seq)))
    kernel = choose(attention, torch.device(DEVICE), model.config.head_dim)
    configure_blocks(model, attention=kernel)
    print(speed_up_dit(model), flush=True)
    return model


def load_tokenizer() -> CosmosTokenizer:
    """The tokenizer with random weights."""
    return CosmosTokenizer(TOKENIZER_PRESETS[TOKENIZER]).to(DEVICE, DTYPE).eval()


def check_parity(attention: AttentionBackend) -> str:
    """A small latent after four steps, and its frames: this device in `DTYPE`, CPU in fp32.

    Sampling adds rounding up, so the measure for the latent is what bf16 loses on the CPU.
    """
    torch.manual_seed(0)
    config = DIT_PRESETS["tiny"].model_copy(update={"hidden": 512, "heads": 4, "ffn": 2048})
    conditions = Conditions(torch.randn(1, 512, config.text_dim), torch.tensor([24.0]))
    weights, _, _ = initial_tokenizer(TOKENIZER_PRESETS["tiny-cv"], 0)
    latents, films = [], []
    for device, dtype in (("cpu", torch.float32), ("cpu", torch.bfloat16), (DEVICE, DTYPE)):
        model = DiT(config, seed=1).to(device, dtype).requires_grad_(False)
        kernel = choose(attention, torch.device(device), config.head_dim)
        configure_blocks(model, compile_blocks=device == "cuda", attention=kernel)
        steps = SamplingConfig(steps=4)
        with torch.no_grad():
            latent = sample_latent(model, conditions, None, (1, 16, 3, 16, 16), steps)
        tokenizer = CosmosTokenizer(TOKENIZER_PRESETS["tiny-cv"]).eval()
        tokenizer.load_state_dict(weights)
        latents.append(latent.cpu())
        # All decode the same latent, so that each error stands for itself.
        tokenizer = tokenizer.to(device, dtype)
        speed_up_tokenizer(tokenizer)
        frames = decode_frames(tokenizer, latents[0].to(device), 17)
        films.append(torch.from_numpy(frames).float())
    bf16_error, latent_error = (relative_error(latent, latents[0]) for latent in latents[1:])
    frame_error = float((films[2] - films[0]).abs().mean())
    assert latent_error < 1.5 * bf16_error, (latent_error, bf16_error)
    assert frame_error < 3.0, frame_error
    return (
        f"parity with the CPU in fp32 (attention {attention}): latent after 4 steps "
        f"{latent_error:.1e} (bf16 on the CPU {bf16_error:.1e}), "
        f"frames differ by {frame_error:.2f} of 255 in the mean"
    )


@contextmanager
def stopwatch(spent: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds inside to ``spent``, device work included."""
    begun = time.perf_counter()
    yield
    if CUDA:
        torch.cuda.synchronize()
    spent[name] = spent.get(name, 0.0) + time.perf_counter() - begun


class Watched(LineProgress):
    """Progress that keeps how long each part took."""

    def __init__(self) -> None:
        super().__init__()
        self.spent: dict[str, float] = {}

    @contextmanager
    def task(self, what: str, total: float | None = None, unit: str = "") -> Iterator[Any]:
        """The part's own progress, timed."""
        with stopwatch(self.spent, what), super().task(what, total, unit) as inner:
            yield inner


def video(steps: int, attention: AttentionBackend) -> Iterator[Row]:
    """One video, everything but loading, which here is only drawing random weights."""
    print(check_parity(attention), flush=True)
    reset()
    loading: dict[str, float] = {}

    def timed(load: Any) -> Any:
        def call() -> Any:
            with stopwatch(loading, "loading"):
                return load()

        return call

    progress = Watched()
    begun = time.perf_counter()
    frames = make_video(
        VideoRequest(
            prompt="a road in the rain",
            frames=CLIP[0],
            height=CLIP[1],
            width=CLIP[2],
            sampling=SamplingConfig(steps=steps),
        ),
        load_text=timed(RandomT5),
        load_model=timed(partial(load_model, attention)),
        load_tokenizer=timed(load_tokenizer),
        progress=progress,
    )
    seconds = time.perf_counter() - begun - loading["loading"]
    assert frames.shape == (*CLIP, 3)
    peak = peak_gib()
    evaluation = dit_forward_flops(DIT_PRESETS[MODEL], TOKENS)
    share = 2 * (steps + 1) * evaluation / seconds / PEAK_BF16
    parts = ", ".join(f"{name} {took:.1f} s" for name, took in progress.spent.items())
    yield Row(
        f"{MODEL} Text2World, {steps} steps",
        f"{seconds:.0f} s",
        f"{share:.1%}",
        "989 TFLOP/s",
        peak,
        f"{parts} (loading within: {loading['loading']:.0f} s)",
    )
    yield one_evaluation(attention)


def one_evaluation(attention: AttentionBackend) -> Row:
    """Where the time of one evaluation of the network goes."""
    reset()
    model = load_model(attention)
    config = DIT_PRESETS[MODEL]
    x = torch.randn(1, 16, *GRID, device=DEVICE)
    words = torch.randn(1, 512, config.text_dim, device=DEVICE)
    conditions = Conditions(words, torch.tensor([24.0], device=DEVICE))

    @torch.no_grad()
    def work() -> object:
        return model(x, torch.zeros(1, device=DEVICE), conditions)

    elapsed = milliseconds(work, repeats=3)
    share = dit_forward_flops(config, TOKENS) / elapsed * 1e3 / PEAK_BF16
    return Row(
        f"{MODEL}, one evaluation",
        f"{elapsed:.0f} ms",
        f"{share:.1%}",
        "989 TFLOP/s",
        peak_gib(),
        spell(breakdown(work)),
    )


def main() -> None:
    parser = argparse.ArgumentParser("sampling", description=__doc__)
    parser.add_argument("parts", nargs="*", default=["text", "video"])
    parser.add_argument("--attention", choices=get_args(AttentionBackend), default="auto")
    options = parser.parse_args()
    header()
    for part in options.parts:
        if part == "text":
            show(text())
        else:
            show(video(int(part.removeprefix("video") or 35), options.attention))


if __name__ == "__main__":
    main()
