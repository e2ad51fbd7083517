"""A DiT with random weights and data of the real shapes, on the project's own training engine.

Nothing is allocated before the model is sharded, so a model that fits its layout fits while it is
built. Samples are a pure function of their number: every layout sees the same data.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from components.lib.cosmos.conditions import Conditions
from components.lib.cosmos.diffusion.edm import edm_loss
from components.lib.cosmos.dit.attention import AttentionBackend, choose
from components.lib.cosmos.dit.network import DIT_PRESETS, DiT, DiTConfig, configure_blocks
from components.lib.cosmos.model_folder import save_model_folder
from components.lib.train.engine import Engine
from components.lib.train.parallel.layout import ParallelLayout, shard_model
from components.lib.train.parallel.weights import load_shards
from components.lib.train.settings.config import DiffusionTrainingConfig
from components.lib.train.tasks.diffusion import DiffusionTask
from tests.benchmarks.gpu.common import relative_error

Shape = tuple[int, int, int, int]
LATENT: Shape = (16, 16, 88, 160)  # 121 x 704 x 1280: 56,320 tokens
#: The published sizes, and one whose eight heads eight CPU processes can share.
GEOMETRIES = DIT_PRESETS | {
    "small": DiTConfig(
        layers=2, hidden=128, heads=8, ffn=256, text_dim=32, text_tokens=16, adaln_rank=8
    )
}


class RandomSamples:
    """A source of as many samples as anyone asks for."""

    def counts(self, split: str) -> list[int]:
        """One shard."""
        return [1024]

    def shapes(self, split: str) -> list[tuple[int, ...]]:
        """All alike."""
        return [()]

    def biggest(self, split: str) -> None:
        """None: all are alike."""

    def read(self, split: str, shard: int, index: int) -> tuple[str, dict[str, bytes]]:
        """Never called: the task makes the tensors."""
        raise AssertionError


class RandomTask(DiffusionTask):
    """The diffusion task on random latents and texts of the real shapes."""

    latent: Shape = LATENT

    def _sample(self, split: Any, shard: int, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        text = (self.dit.text_tokens, self.dit.text_dim)
        return {
            "latent": torch.randn(self.latent, generator=generator).bfloat16(),
            "text": torch.randn(text, generator=generator).bfloat16(),
            "fps": torch.tensor(24.0),
        }


def build(
    config: DiffusionTrainingConfig,
    geometry: DiTConfig,
    layout: ParallelLayout,
    latent: Shape = LATENT,
    start: Path | None = None,
) -> Engine:
    """An engine, allocated on this rank's device only, with the weights of ``start`` or random
    ones, which every layout draws in its own way."""
    with tempfile.TemporaryDirectory() as folder:
        # an empty state dict is enough: only the geometry is read back
        save_model_folder(Path(folder), "dit", "random", geometry, {"none": torch.zeros(1)})
        task = RandomTask(config, layout, RandomSamples(), None, Path(folder))  # type: ignore[arg-type]
    task.latent = latent
    shard_model(task.model, task.units(), layout, config.trainer, task.shard_dim)
    task.model.to_empty(device=layout.device)
    if start is not None:
        load_shards(task.model, start, layout, task.shard_dim)
        task.after_sharding({})
        return Engine(config, layout, task)
    torch.manual_seed(layout.rank)
    with torch.no_grad():
        for parameter in task.model.parameters():
            local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
            local.normal_(std=0.02)
        counter = task.model.get_buffer("pos_embedder.seq")
        counter.copy_(torch.arange(len(counter)))
    task.after_sharding({})
    return Engine(config, layout, task)


def tokens_of(geometry: DiTConfig, latent: Shape) -> int:
    """Video tokens of one sample."""
    return latent[1] * latent[2] * latent[3] // geometry.patch_volume


def plan(engine: Engine) -> str:
    """How the blocks recompute, and what waits on the host."""
    kinds = [str(getattr(block, "checkpointing", "none")) for block in engine.task.units()]
    plan = "recompute " + ", ".join(f"{k} x {kinds.count(k)}" for k in dict.fromkeys(kinds))
    activations = getattr(engine.task, "activation_offload", None)
    offloads = [("optimizer state", engine.optimizer_offload), ("activations", activations)]
    sizes = [f"{part.nbytes / 2**30:.1f} GiB of {name}" for name, part in offloads if part]
    if sizes:
        plan += f", {' and '.join(sizes)} wait on the host"
    return plan


def check_parity(device: str = "cuda", attention: AttentionBackend = "auto") -> str:
    """Loss and gradients of a small DiT: ``device`` in bf16, compiled, against CPU in fp32.

    Returns the sentence that says how near they are; AssertionError when they are not.
    """
    config = DIT_PRESETS["tiny"].model_copy(update={"hidden": 512, "heads": 4, "ffn": 2048})
    torch.manual_seed(0)
    latent, noise = torch.randn(2, 1, 16, 4, 16, 16)
    text = torch.randn(1, 512, config.text_dim)
    values = []
    for place, dtype in (("cpu", torch.float32), (device, torch.bfloat16)):
        model = DiT(config, seed=1).to(place, dtype)
        if dtype is torch.bfloat16:
            kernel = choose(attention, torch.device(place), config.head_dim)
            configure_blocks(
                model, checkpointing="selective", compile_blocks=True, attention=kernel
            )
        loss = edm_loss(
            model,
            latent.to(place),
            torch.tensor([0.7], device=place),
            noise.to(place),
            Conditions(text, torch.tensor([24.0])).to(place),
        ).loss
        loss.backward()
        grad = model.get_parameter("blocks.block0.blocks.0.block.attn.to_q.0.weight").grad
        assert grad is not None
        values.append((loss.detach(), grad))
    loss_error = relative_error(values[1][0], values[0][0])
    grad_error = relative_error(values[1][1], values[0][1])
    assert loss_error < 2e-2, loss_error
    assert grad_error < 6e-2, grad_error
    return (
        f"parity with the CPU in fp32 (attention {attention}): DiT loss {loss_error:.1e}, "
        f"gradient {grad_error:.1e}"
    )
