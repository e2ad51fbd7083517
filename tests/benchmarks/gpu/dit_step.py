"""A whole training step of the DiT on one GPU, with the project's own engine.

``python -m tests.benchmarks.gpu.dit_step 7B:4 7B:8:recompute=selective 14B:fit 7B:28:lora=16``
measures each case: geometry, number of layers (``fit``: as many as the memory holds when attention
outputs are kept), then settings of the trainer (`recompute`, `attention`, `compile`,
`compile_mode`) and ``lora`` for low-rank updates of that rank on frozen weights. Data and weights
are random, of the real shapes (121 x 704 x 1280: 56,320 tokens; ``--latent 16x16x44x80`` for
others). What a case leaves out is the trainer's own choice.

Before timing, the loss of a small model on the GPU in bf16 is compared with the CPU in fp32.
Without a GPU the same code runs on the CPU, uncompiled, to prove the command: small geometries.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from components.lib.cosmos.dit.network import DiTConfig
from components.lib.cosmos.flops import KEPT, STATE_BYTES, WORKING, dit_forward_flops
from components.lib.cosmos.shapes import parameter_count
from components.lib.train.parallel.layout import stop_processes
from components.lib.train.settings.config import DiffusionTrainingConfig
from tests.benchmarks.gpu.common import (
    PEAK_BF16,
    Row,
    allocator_retries,
    breakdown,
    header,
    peak_gib,
    reset,
    show,
    single_process_layout,
    spell,
)
from tests.benchmarks.gpu.random_dit import (
    GEOMETRIES,
    LATENT,
    Shape,
    build,
    check_parity,
    plan,
    tokens_of,
)

GRADIENT_BYTES = 4
GATHERED_BYTES = 6  # bf16 weights of the layer at work and of the next, one gradient
USABLE = 0.92


def parse_case(case: str) -> tuple[DiTConfig, DiffusionTrainingConfig]:
    """Geometry and trainer settings of a case. ValueError when it names none."""
    preset, count, *settings = case.split(":")
    geometry = GEOMETRIES[preset]
    values: dict[str, Any] = dict(setting.split("=") for setting in settings)
    lora = int(values.pop("lora", 0))
    layers = fitting_layers(geometry) if count == "fit" else int(count)
    trainer = {"recompute": "auto", "compile": torch.cuda.is_available(), "max_steps": 1000}
    config = DiffusionTrainingConfig.model_validate(
        {"model": {"preset": preset, "lora": {"rank": lora}}, "trainer": trainer | values}
    )
    return geometry.model_copy(update={"layers": layers}), config


def fitting_layers(geometry: DiTConfig, tokens: int = 56_320, total_bytes: float = 0.0) -> int:
    """Layers whose training fits with attention outputs kept, at most those of the geometry."""
    if not total_bytes:
        total_bytes = float(torch.cuda.get_device_properties(0).total_memory)
    one, two = (parameter_count(geometry.model_copy(update={"layers": n})) for n in (1, 2))
    unit = tokens * geometry.hidden * 2
    layer, beside = two - one, 2 * one - two
    # A layer's gradients come when its activations go; see `plan_recompute`.
    gradients = GRADIENT_BYTES * layer
    each = STATE_BYTES * layer - gradients + max(gradients, KEPT["selective"] * unit)
    fixed = STATE_BYTES * beside + GATHERED_BYTES * layer + WORKING * unit
    return max(1, min(geometry.layers, int((USABLE * total_bytes - fixed) // each)))


def measure(case: str, latent: Shape = LATENT) -> Row:
    """One case, as named in the module's docstring."""
    geometry, config = parse_case(case)
    layout = single_process_layout(config.trainer)
    reset()
    engine = build(config, geometry, layout, latent)
    engine.start_data()
    retries = allocator_retries()
    warm_up, count = (3, 5) if geometry.layers <= 12 else (2, 2)
    for _ in range(warm_up):
        engine.train_step()
    steps = [engine.train_step() for _ in range(count)]
    seconds = sorted(step["step_seconds"] for step in steps)[count // 2]
    waited = sorted(step["data_wait_seconds"] for step in steps)[count // 2]
    peak = peak_gib()
    flops = dit_forward_flops(geometry, tokens_of(geometry, latent))
    share = 3 * flops / seconds / PEAK_BF16
    # Known before the breakdown, in case time runs out.
    print(f"{case}, {geometry.layers} layers: {seconds:.3f} s, {share:.1%}", flush=True)
    parts = breakdown(engine.train_step)
    engine.stop_data()
    note = f"{spell(parts)}, data wait {waited * 1e3:.0f} ms; {plan(engine)}"
    if retries := allocator_retries() - retries:
        note += f"; the allocator ran out and started over {retries} times"
    del engine
    stop_processes()
    name = f"DiT {case}, {geometry.layers} layers"
    figure = f"{seconds:.3f} s a step"
    return Row(name, figure, f"{share:.1%}", "989 TFLOP/s (MFU)", peak, note)


def rows(cases: Sequence[str], latent: Shape) -> Iterator[Row]:
    """A row per case; a case that does not fit is a row that says so."""
    for case in cases:
        try:
            yield measure(case, latent)
        except torch.OutOfMemoryError as error:
            stop_processes()
            yield Row(case, "out of memory", "-", "-", peak_gib(), str(error).split(".")[0])


def parse_shape(text: str) -> Shape:
    """A latent's shape from words such as 16x16x88x160."""
    channels, frames, height, width = (int(part) for part in text.split("x"))
    return channels, frames, height, width


def main() -> None:
    parser = argparse.ArgumentParser("dit_step", description=__doc__)
    parser.add_argument("cases", nargs="*", default=["7B:4", "7B:8"])
    parser.add_argument("--latent", type=parse_shape, default=LATENT)
    options = parser.parse_args()
    header()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for attention in dict.fromkeys(parse_case(c)[1].trainer.attention for c in options.cases):
        print(check_parity(device, attention), flush=True)
    show(rows(options.cases, options.latent))


if __name__ == "__main__":
    main()
