"""Diffusion post-training: the DiT, its latents and prompts, the EDM loss, held-out validation.

Validation uses fixed noise on a fixed grid of sigmas and text without dropout, so two checkpoints,
or two models, compare; the training loss is too noisy for that.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from components.lib.contract import UserError
from components.lib.cosmos.conditions import Conditions, leading_frames
from components.lib.cosmos.diffusion.edm import NoiseConfig, edm_loss, validation_sigmas
from components.lib.cosmos.dit.attention import AttentionBackend, choose
from components.lib.cosmos.dit.block import TransformerBlock
from components.lib.cosmos.dit.network import (
    DIT_PRESETS,
    DiT,
    DiTConfig,
    configure_blocks,
    tp_partial_gradient_names,
    tp_shard_dims,
)
from components.lib.cosmos.flops import dit_forward_flops
from components.lib.manifest import Manifest
from components.lib.shards.dataset import SampleSource, Split, held_out_samples, largest_latent
from components.lib.shards.prompts import PromptSource, open_prompts
from components.lib.store import ObjectStore
from components.lib.train.data.batches import Batch, to_device
from components.lib.train.data.noise import GRID, SampleNoise, validation_noise
from components.lib.train.memory.activation_offload import ActivationOffload
from components.lib.train.memory.plan import plan_memory
from components.lib.train.memory.recompute import MemoryPlan, device_bytes, keep_products
from components.lib.train.parallel.layout import ParallelLayout
from components.lib.train.settings.config import DiffusionTrainingConfig
from components.lib.train.tasks.lora import (
    add_lora,
    draw_factors,
    merged,
    uncut_factors,
)
from components.lib.train.tasks.task import Work

log = logging.getLogger("cosmos.train")
LATENT_SUFFIX, EMBEDDING_SUFFIX, INFO_SUFFIX = (
    "video_latent.pth",
    "t5_text_embeddings.pth",
    "info.json",
)


def dit_config(config: DiffusionTrainingConfig, start: Path | None) -> DiTConfig:
    """Geometry from the starting folder, or from the preset when there is none."""
    if start is not None:
        from components.lib.cosmos.model_folder import read_model_config

        model = read_model_config(start)
        if model.family != "dit":
            raise UserError(f"resume.restore_config.path holds a {model.family}, not a DiT.")
        return DiTConfig.model_validate(model.config)
    if config.model.preset not in DIT_PRESETS:
        raise UserError(
            f"There is no model.preset '{config.model.preset}'. Choose {', '.join(DIT_PRESETS)}."
        )
    return DIT_PRESETS[config.model.preset]


class DiffusionTask:
    """See `components.lib.train.tasks.task.TrainingTask`."""

    def __init__(
        self,
        config: DiffusionTrainingConfig,
        layout: ParallelLayout,
        source: SampleSource,
        prompts: PromptSource,
        start: Path | None,
        largest: tuple[int, ...] | None = None,
    ) -> None:
        """``largest``: [C, T, H, W] of the largest latent that will come, if that is known."""
        self.config, self.layout, self.source, self.prompts = config, layout, source, prompts
        self.largest = largest
        self.activation_offload: ActivationOffload | None = None
        if config.trainer.activations == "host" and not config.trainer.compile:
            raise UserError(
                "trainer.activations=host needs trainer.compile=true: only compiled blocks give "
                "away what they keep. Set that too, or trainer.activations=auto."
            )
        self.dit = dit_config(config, start)
        # With weights to load nothing is allocated before the model is sharded.
        context = torch.device("meta") if start is not None else torch.device("cpu")
        with context:
            self.model: nn.Module = DiT(
                self.dit,
                sequence_parallel=layout.sequence_parallel,
                seed=None if start is not None else config.trainer.seed,
            )
        self._partial = set(tp_partial_gradient_names(self._dit))
        if config.model.lora.rank:
            mixed = config.trainer.precision == "bf16-mixed"
            add_lora(self._dit, config.model.lora, torch.bfloat16 if mixed else None)
            trained = {n for n, p in self.model.named_parameters() if p.requires_grad}
            self._partial = (self._partial & trained) | uncut_factors(self.model)
        self._cut = tp_shard_dims(self.model)
        self._trainable = sum(
            p.numel() * (layout.tp if self.shard_dim(n) is not None else 1)
            for n, p in self.model.named_parameters()
            if p.requires_grad
        )
        self.name = _start_name(start) or f"cosmos-dit-{config.model.preset}"
        wanted = config.trainer.recompute  # auto: chosen once the size of a batch is known
        self.attention: AttentionBackend = choose(
            config.trainer.attention, layout.device, self.dit.head_dim
        )
        configure_blocks(
            self._dit,
            checkpointing="none" if wanted == "auto" else wanted,
            compile_blocks=config.trainer.compile,
            attention=self.attention,
        )

    @property
    def _dit(self) -> DiT:
        assert isinstance(self.model, DiT)
        return self.model

    def units(self) -> list[nn.Module]:
        """One per block."""
        return list(self._dit.blocks.values())

    def shard_dim(self, name: str) -> int | None:
        """As the layers said of themselves before sharding."""
        return self._cut.get(name)

    def partial_names(self) -> set[str]:
        """Recorded before sharding, which replaces the parameters."""
        return self._partial

    def extra_names(self) -> tuple[str, ...]:
        """None."""
        return ()

    def after_sharding(self, extras: Mapping[str, torch.Tensor]) -> None:
        """Draw the factors of low-rank updates."""
        if self.config.model.lora.rank:
            draw_factors(self.model, self.layout, self.shard_dim, self.config.trainer.seed)

    def train_counts(self) -> list[int]:
        """Samples of each training shard."""
        return self.source.counts("train")

    def train_shapes(self) -> list[tuple[int, ...]]:
        """Of their latents."""
        return self.source.shapes("train")

    def make_batch(self, samples: list[tuple[int, int, int]]) -> Batch:
        """latent, noise [B,16,T,H,W]; sigma [B]; and the conditions, by their names."""
        rows = [self._row(number, shard, index) for number, shard, index in samples]
        return _stack(rows)

    def _row(self, number: int, shard: int, index: int) -> Batch:
        row = self._sample("train", shard, index)
        draw = SampleNoise(number, self.config.trainer.seed, self.config.model, row["latent"].shape)
        text = row["text"] if draw.keep_text else torch.zeros_like(row["text"])
        return row | {
            "text": text,
            "noise": draw.noise,
            "sigma": draw.sigma,
            **self._shown(draw.condition_frames, row["latent"]),
        }

    def _shown(self, count: int, latent: torch.Tensor) -> Batch:
        """shown_frames [T], for models that take them."""
        if not self.dit.condition_mask:
            return {}
        return {"shown_frames": leading_frames(torch.tensor([count]), latent.shape[1])[0]}

    def _sample(self, split: Split, shard: int, index: int) -> Batch:
        """latent [16,T,H,W], text [512,D], fps [], and what else the data set holds of them."""
        name, parts = self.source.read(split, shard, index)
        if LATENT_SUFFIX in parts:
            return _guide_sample(name, parts)
        from components.lib.shards.latents import parse_latent

        latent, info, conditions = parse_latent(parts, name)
        if info.prompt_sha256 is None:
            raise UserError(f"{name} has no prompt. Give the videos prompts and encode again.")
        return {
            "latent": latent,
            "text": self.prompts.embedding(info.prompt_sha256),
            "fps": torch.tensor(info.fps),
            **conditions,
        }

    def loss(self, batch: Batch, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The EDM loss."""
        return self._edm(batch).loss, {}

    def prepare(self, batch: Batch, passes: int) -> MemoryPlan:
        """Choose each block's recomputation, and what is on the host during passes."""
        trainer = self.config.trainer
        blocks = [block for block in self.units() if isinstance(block, TransformerBlock)]
        kinds = [block.checkpointing for block in blocks]
        total, samples = device_bytes(self.layout.device), len(batch["latent"])
        planned = trainer.recompute == "auto" and total is not None
        if not planned and trainer.activations != "host":
            return MemoryPlan(kinds, trainer.optimizer_state == "host", [])
        # The first batch need not be the largest, and the plan must hold for all.
        shapes = [shape for shape in (batch["latent"].shape[1:], self._largest_latent()) if shape]
        tokens = max(self._tokens(shape) for shape in shapes)
        if planned and total is not None:
            plan = plan_memory(
                self.model,
                self.dit,
                self.layout,
                trainer,
                total_bytes=total,
                samples=samples,
                tokens=tokens,
                passes=passes,
            )
            configure_blocks(self._dit, checkpointing=plan.kinds, attention=self.attention)
        else:
            plan = MemoryPlan(kinds, trainer.optimizer_state == "host", keep_products(kinds))
        if plan.offloaded:
            self.activation_offload = ActivationOffload(
                blocks,
                plan.offloaded,
                width=self.dit.ffn // self.layout.tp,
                rows=samples * tokens,
                dtype=torch.bfloat16 if trainer.precision == "bf16-mixed" else torch.float32,
                device=self.layout.device,
            )
        return plan

    def _largest_latent(self) -> tuple[int, ...] | None:
        """[C, T, H, W]: of the manifest, or of the biggest file in a folder."""
        if self.largest is None and (largest_sample := self.source.biggest("train")):
            self.largest = tuple(self._sample("train", *largest_sample)["latent"].shape)
        return self.largest

    def _edm(self, batch: Batch) -> Any:
        return edm_loss(
            self.model,
            batch["latent"],
            batch["sigma"],
            batch["noise"],
            Conditions.of_batch(batch),
            self.config.model.sigma_data,
        )

    def validation(self, folder: Path, step: int) -> dict[str, float]:
        """Mean loss over held-out samples x the sigma grid, and per noise level."""
        split, pairs = self.held_out()
        model = self.config.model
        grid = validation_sigmas(GRID, NoiseConfig(mean=model.p_mean, std=model.p_std)).float()
        sums = torch.zeros(GRID, dtype=torch.float64, device=self.layout.device)
        jobs = [(sample, level) for sample in range(len(pairs)) for level in range(GRID)]
        rounds = -(-len(jobs) // self.layout.dp)
        self.model.eval()
        with torch.no_grad():
            for turn in range(rounds):
                job = turn * self.layout.dp + self.layout.dp_rank
                # FSDP needs every rank in every forward pass; idle ones repeat the last job.
                sample, level = jobs[min(job, len(jobs) - 1)]
                row = self._sample(split, *pairs[sample])
                row["noise"] = validation_noise(
                    sample, level, self.config.trainer.seed, row["latent"].shape
                )
                row["sigma"] = grid[level]
                row |= self._shown(1, row["latent"])
                value = self._edm(to_device(_stack([row]), self.layout.device)).loss
                if job < len(jobs):
                    sums[level] += value.double()
        self.model.train()
        dist.all_reduce(sums)
        means = (sums / self.layout.tp / len(pairs)).tolist()
        levels = {
            f"loss_sigma_{sigma:.3g}": mean
            for sigma, mean in zip(grid.tolist(), means, strict=True)
        }
        return {"loss": sum(means) / GRID, **levels}

    def held_out(self) -> tuple[Split, list[tuple[int, int]]]:
        """The split that validation reads and the first of its samples."""
        split, samples = held_out_samples(self.source)
        return split, samples[: self.config.trainer.limit_val_batches]

    def work(self, batch: Batch) -> Work:
        """Tokens after patching."""
        tokens = self._tokens(batch["latent"].shape[1:])
        samples = len(batch["latent"])
        return Work(
            unit="tokens",
            amount=samples * tokens,
            forward_flops=samples * float(dit_forward_flops(self.dit, tokens)),
        )

    def _tokens(self, latent: Sequence[int]) -> int:
        """Of a latent [C, T, H, W] after patching."""
        return math.prod(latent[1:]) // self.dit.patch_volume

    def export(self, folder: Path, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        """A canonical folder in bf16, as the official weights are (fp32 for 32-true runs)."""
        from components.lib.cosmos.model_folder import save_model_folder

        bf16 = self.config.trainer.precision == "bf16-mixed"
        if self.config.model.lora.rank:
            weights = merged(weights, self.config.model.lora)
        save_model_folder(
            folder,
            "dit",
            self.name,
            self.dit,
            ((name, _cast(name, tensor) if bf16 else tensor) for name, tensor in weights),
        )

    def describe(self) -> dict[str, Any]:
        """Geometry, validation split, counts."""
        split, pairs = self.held_out()
        return {
            "family": "dit",
            "name": self.name,
            "network": self.dit.model_dump(mode="json"),
            "trainable_parameters": self._trainable,
            "training_samples": sum(self.train_counts()),
            "validation_samples": len(pairs),
            "validation": "held-out" if split == "validation" else "same-video",
        }


def _cast(name: str, tensor: torch.Tensor) -> torch.Tensor:
    # The position counter is an index table and keeps its precision.
    return tensor if name.startswith("pos_embedder") else tensor.to(torch.bfloat16)


def _guide_sample(name: str, parts: dict[str, bytes]) -> Batch:
    import io
    import json

    def tensor(suffix: str) -> torch.Tensor:
        return torch.load(io.BytesIO(parts[suffix]), map_location="cpu", weights_only=True)

    info = json.loads(parts[INFO_SUFFIX])
    if "fps" not in info:
        raise UserError(f"{name}.{INFO_SUFFIX} has no 'fps'.")
    return {
        "latent": tensor(LATENT_SUFFIX),
        "text": tensor(EMBEDDING_SUFFIX),
        "fps": torch.tensor(float(info["fps"])),
    }


def _stack(rows: list[Batch]) -> Batch:
    first = rows[0]["latent"].shape
    for row in rows:
        if row["latent"].shape != first:
            raise UserError(
                f"A batch mixes latents of {tuple(first)} and {tuple(row['latent'].shape)}. "
                "Set data.micro_batch_size=1 for data of several sizes."
            )
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _start_name(start: Path | None) -> str:
    if start is None:
        return ""
    from components.lib.cosmos.model_folder import read_model_config

    return read_model_config(start).name


def make_task(
    config: DiffusionTrainingConfig,
    layout: ParallelLayout,
    source: SampleSource,
    manifest: Manifest | None,
    store: ObjectStore | None,
    start: Path | None,
) -> DiffusionTask:
    """The task with its prompts; a data set's manifest tells the largest latent."""
    prompts = open_prompts(config.data.prompts, store)
    return DiffusionTask(config, layout, source, prompts, start, largest_latent(manifest))
