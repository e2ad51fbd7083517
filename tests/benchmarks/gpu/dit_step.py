"""A whole training step of the DiT on one GPU, with the project's own engine.

``python -m tests.benchmarks.gpu.dit_step 7B:4 7B:8 14B:4 7B:28:lora`` measures each case: preset,
number of layers, and ``lora`` for rank 16 on frozen weights. Data and weights are random, of the
real shapes (121 x 704 x 1280: 56,320 tokens). A further field picks the recomputation, such as
``7B:4::light``; without it the trainer's own choice is measured.

Before timing, the loss of a small model on the GPU in bf16 is compared with the CPU in fp32.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from components.lib.cosmos.dit import DIT_PRESETS, DiT
from components.lib.cosmos.edm import edm_loss
from components.lib.cosmos.flops import dit_forward_flops
from components.lib.cosmos.model_folder import save_model_folder
from components.lib.train.config import DiffusionConfig
from components.lib.train.diffusion import DiffusionTask
from components.lib.train.engine import Engine
from components.lib.train.layout import Layout, shard_model
from tests.benchmarks.gpu.common import (
    PEAK_BF16,
    Row,
    breakdown,
    header,
    peak_gib,
    relative_error,
    reset,
    show,
    single_process_layout,
    spell,
)

LATENT = (16, 16, 88, 160)


class RandomSamples:
    """A source of as many samples as anyone asks for."""

    def counts(self, split: str) -> list[int]:
        """One shard."""
        return [1024]

    def read(self, split: str, shard: int, index: int) -> tuple[str, dict[str, bytes]]:
        """Never called: the task makes the tensors."""
        raise AssertionError


class RandomTask(DiffusionTask):
    """The diffusion task on random latents and texts of the real shapes."""

    def _sample(self, split: Any, shard: int, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        return {
            "latent": torch.randn(LATENT, generator=generator).bfloat16(),
            "text": torch.randn(512, 1024, generator=generator).bfloat16(),
            "fps": torch.tensor(24.0),
        }


def build(config: DiffusionConfig, layers: int, layout: Layout) -> Engine:
    """An engine with random weights, allocated on the device only."""
    preset = DIT_PRESETS[config.model.preset].model_copy(update={"layers": layers})
    with tempfile.TemporaryDirectory() as folder:
        # an empty state dict is enough: only the geometry is read back
        save_model_folder(Path(folder), "dit", "random", preset, {"none": torch.zeros(1)})
        task = RandomTask(config, layout, RandomSamples(), None, Path(folder))  # type: ignore[arg-type]
    shard_model(task.model, task.units(), layout, config.trainer, task.shard_dim)
    task.model.to_empty(device=layout.device)
    with torch.no_grad():
        for parameter in task.model.parameters():
            local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
            local.normal_(std=0.02)
        counter = task.model.get_buffer("pos_embedder.seq")
        counter.copy_(torch.arange(len(counter)))
    task.after_sharding({})
    return Engine(config, layout, task)


def measure(case: str) -> Row:
    """One case, as named in the module's docstring."""
    preset, layers, mode, recompute = [*case.split(":"), "", "", ""][:4]
    trainer: dict[str, Any] = {"compile": True, "max_steps": 1000}
    trainer["recompute"] = recompute or "auto"
    model: dict[str, Any] = {"preset": preset}
    if mode == "lora":
        model["lora"] = {"rank": 16}
    config = DiffusionConfig.model_validate({"model": model, "trainer": trainer})
    layout = single_process_layout(config.trainer)
    reset()
    engine = build(config, int(layers), layout)
    engine.start_data()
    warm_up, count = (3, 5) if int(layers) <= 12 else (2, 2)
    for _ in range(warm_up):
        engine.train_step()
    steps = [engine.train_step() for _ in range(count)]
    seconds = sorted(step["step_seconds"] for step in steps)[count // 2]
    waited = sorted(step["data_wait_seconds"] for step in steps)[count // 2]
    parts = breakdown(engine.train_step)
    engine.stop_data()
    tokens = LATENT[1] * LATENT[2] * LATENT[3] // 4
    flops = dit_forward_flops(engine.task.dit, tokens)  # type: ignore[attr-defined]
    share = 3 * flops / seconds / PEAK_BF16
    note = f"{spell(parts)}, data wait {waited * 1e3:.0f} ms; {plan(engine)}"
    del engine
    name = f"DiT {preset}, {layers} layers{', LoRA 16' if mode == 'lora' else ''}"
    figure = f"{seconds:.3f} s a step"
    return Row(name, figure, f"{share:.1%}", "989 TFLOP/s (MFU)", peak_gib(), note)


def plan(engine: Engine) -> str:
    """How the blocks recompute."""
    kinds = [block.checkpointing for block in engine.task.units()]
    return "recompute " + ", ".join(f"{k} x {kinds.count(k)}" for k in dict.fromkeys(kinds))


def check_parity() -> None:
    """Loss and gradients of a small DiT: GPU in bf16, compiled, against CPU in fp32."""
    config = DIT_PRESETS["tiny"].model_copy(update={"hidden": 512, "heads": 4, "ffn": 2048})
    torch.manual_seed(0)
    latent, noise = torch.randn(2, 1, 16, 4, 16, 16)
    text = torch.randn(1, 512, config.text_dim)
    values = []
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        model = DiT(config, seed=1).to(device, dtype)
        if device == "cuda":
            from components.lib.cosmos.dit import configure_blocks

            configure_blocks(model, checkpointing="selective", compile_blocks=True)
        loss = edm_loss(
            model,
            latent.to(device),
            torch.tensor([0.7], device=device),
            noise.to(device),
            text.to(device),
            fps=torch.tensor([24.0], device=device),
        ).loss
        loss.backward()
        grad = model.get_parameter("blocks.block0.blocks.0.block.attn.to_q.0.weight").grad
        assert grad is not None
        values.append((loss.detach(), grad))
    loss_error = relative_error(values[1][0], values[0][0])
    grad_error = relative_error(values[1][1], values[0][1])
    print(f"parity with the CPU in fp32: loss {loss_error:.1e}, gradient {grad_error:.1e}")
    assert loss_error < 2e-2, loss_error
    assert grad_error < 6e-2, grad_error


def rows(cases: list[str]) -> Iterator[Row]:
    """A row per case; a case that does not fit is a row that says so."""
    for case in cases:
        try:
            yield measure(case)
        except torch.OutOfMemoryError as error:
            yield Row(case, "out of memory", "-", "-", peak_gib(), str(error).split(".")[0])


if __name__ == "__main__":
    header()
    check_parity()
    show(rows(sys.argv[1:] or ["7B:4", "7B:8"]))
