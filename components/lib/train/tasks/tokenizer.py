"""Tokenizer post-training: reconstruction of clips, with PSNR and SSIM on held-out ones.

A clip whose video turns out to be damaged is replaced by one drawn from elsewhere, the same one in
every layout and after every resume; it is logged and counted, and too many stop the run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from components.lib.contract import UserError
from components.lib.cosmos.dit.attention import AttentionBackend
from components.lib.cosmos.flops import video_flops
from components.lib.cosmos.perceptual import (
    FlowNetwork,
    VGG16Features,
    check_weights,
    feature_terms,
    flow_term,
    l1,
    load_vgg16,
    scheduled,
)
from components.lib.cosmos.tokenizer.channels_last import use_channels_last
from components.lib.cosmos.tokenizer.network import (
    TOKENIZER_PRESETS,
    CosmosTokenizer,
    TokenizerConfig,
)
from components.lib.manifest import Manifest
from components.lib.report.quality import psnr, ssim
from components.lib.shards.dataset import SampleSource, Split, held_out_samples
from components.lib.store import ObjectStore
from components.lib.train.data.batches import Batch
from components.lib.train.data.clips import ClipReader
from components.lib.train.data.sampler import seed_of
from components.lib.train.memory.recompute import MemoryPlan
from components.lib.train.parallel.layout import ParallelLayout
from components.lib.train.settings.auto_layout import compile_mode
from components.lib.train.settings.config import TokenizerTrainingConfig
from components.lib.train.starting import fetch_model
from components.lib.train.tasks.task import Work

log = logging.getLogger("cosmos.train")
STATISTICS = ("latents_mean", "latents_std")
_MAX_BAD = 100
_OFFICIAL = "Cosmos-1.0-Tokenizer-"


def network_config(config: TokenizerTrainingConfig, start: Path | None) -> TokenizerConfig:
    """Geometry from the starting folder, or from `model.model` when there is none."""
    if start is not None:
        from components.lib.cosmos.model_folder import read_model_config

        model = read_model_config(start)
        if model.family != "tokenizer":
            raise UserError(f"model.jit_ckpt_pth holds a {model.family}, not a tokenizer.")
        return TokenizerConfig.model_validate(model.config)
    preset = config.model.model.removeprefix(_OFFICIAL)
    if preset not in TOKENIZER_PRESETS:
        known = ", ".join(
            _OFFICIAL + name if not name.startswith("tiny") else name for name in TOKENIZER_PRESETS
        )
        raise UserError(f"There is no tokenizer '{config.model.model}'. Choose {known}.")
    return TOKENIZER_PRESETS[preset]


class TokenizerTask:
    """See `components.lib.train.tasks.task.TrainingTask`."""

    def __init__(
        self,
        config: TokenizerTrainingConfig,
        layout: ParallelLayout,
        source: SampleSource,
        vgg: VGG16Features | None,
        start: Path | None,
        flow: FlowNetwork | None = None,
    ) -> None:
        if layout.tp > 1:
            raise UserError(
                "The tokenizers train data-parallel only: set "
                "trainer.strategy.tensor_model_parallel_size=1."
            )
        self.config, self.layout, self.source = config, layout, source
        self.network = network_config(config, start)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("weights", config.trainer.seed))
            self.model: nn.Module = CosmosTokenizer(self.network)
        # the same function and names, twice as fast on GPUs and on CPUs
        use_channels_last(self.model)
        self.name = _name(config, start)
        self.vgg = vgg.to(layout.device) if vgg is not None else None
        self.flow = flow
        self.reader = ClipReader(config.data.task_encoder, config.data.decoded_cache_mib * 2**20)
        self.attention: AttentionBackend = "auto"
        self.replaced = 0
        self.unfit: set[tuple[int, int, int]] = set()  # validation clip, shard, index

    @property
    def _net(self) -> CosmosTokenizer:
        assert isinstance(self.model, CosmosTokenizer)
        return self.model

    def units(self) -> list[nn.Module]:
        """Encoder and decoder."""
        return [self._net.encoder, self._net.decoder]

    def shard_dim(self, name: str) -> int | None:
        """No tensor parallelism."""
        return None

    def partial_names(self) -> set[str]:
        """No tensor parallelism."""
        return set()

    def extra_names(self) -> tuple[str, ...]:
        """The latent statistics."""
        return STATISTICS

    def after_sharding(self, extras: Mapping[str, torch.Tensor]) -> None:
        """Let `encode` gather weights as `forward` does; compile if asked."""
        from torch.distributed.fsdp import register_fsdp_forward_method

        if extras:
            self._net.set_latent_statistics(*(extras[name] for name in STATISTICS))
        register_fsdp_forward_method(self.model, "encode")
        if self.config.trainer.compile:
            mode = compile_mode(self.config.trainer, self.layout.world, self.layout.device.type)
            compile_networks(self._net, mode)

    def train_counts(self) -> list[int]:
        """Videos of each training shard."""
        return self.source.counts("train")

    def train_shapes(self) -> list[tuple[int, ...]]:
        """All alike: clips are cut out of the videos in one size."""
        return [() for _ in self.train_counts()]

    def make_batch(self, samples: list[tuple[int, int, int]]) -> Batch:
        """video: uint8 [B, 3, T, H, W]."""
        return {"video": torch.stack([self._clip(*sample) for sample in samples])}

    def _clip(self, number: int, shard: int, index: int) -> torch.Tensor:
        seed = self.config.data.seed
        counts, problem = np.array(self.train_counts()), ""
        for attempt in range(_MAX_BAD):
            # What is wrong with a shard or the store is not the video's fault, and stops the run.
            name, parts = self.source.read("train", shard, index)
            try:
                return self.reader.clip(
                    name, _video(name, parts), seed_of("clip", seed, number, attempt)
                )
            except UserError as error:
                self.replaced += 1
                problem = str(error)
                log.warning("sample %d replaced: %s", number, problem)
                if self.replaced > max(_MAX_BAD, counts.sum() // 20):
                    raise
                place = seed_of("replacement", seed, number, attempt) % int(counts.sum())
                shard = int(np.searchsorted(counts.cumsum(), place, side="right"))
                index = place - int(counts[:shard].sum())
        raise UserError(f"{_MAX_BAD} clips in a row could not be cut. The last one: {problem}")

    def prepare(self, batch: Batch, passes: int) -> MemoryPlan:
        """Nothing depends on the size of a batch, and no unit computes anything again."""
        return MemoryPlan(
            ["none"] * len(self.units()), self.config.trainer.optimizer_state == "host", []
        )

    def loss(self, batch: Batch, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """L1 plus the feature terms that are on at this step."""
        video = _unit(batch["video"])
        rebuilt = self.model(video)
        color = self.config.model.color_weight * l1(video, rebuilt)
        total, parts = color, {"color": color}
        features = self.feature_weights(step)
        if any(features.values()):
            assert self.vgg is not None
            perceptual, gram = feature_terms(self.vgg, video, rebuilt, gram=features["gram"] > 0)
            parts["lpips"] = features["perceptual"] * perceptual
            total = total + parts["lpips"]
            if features["gram"]:
                parts["gram"] = features["gram"] * gram
                total = total + parts["gram"]
        weight = scheduled(self.config.model.flow_weight, self.config.model.flow_boundary, step)
        if weight:
            assert self.flow is not None
            parts["flow"] = weight * flow_term(self.flow, video, rebuilt)
            total = total + parts["flow"]
        return total, parts

    def feature_weights(self, step: int) -> dict[str, float]:
        """Weights of the VGG terms at a global step."""
        model = self.config.model
        return {
            "perceptual": scheduled(model.perceptual_weight, model.perceptual_boundary, step),
            "gram": scheduled(model.gram_weight, model.gram_boundary, step),
        }

    def validation(self, folder: Path, step: int) -> dict[str, float]:
        """Loss, PSNR, SSIM (and code usage) over fixed clips; writes a picture per clip."""
        split, pairs = held_out_samples(self.source)
        clips = self.config.data.validation_clips
        sums = torch.zeros(3, dtype=torch.float64, device=self.layout.device)
        fsq = self._net.fsq
        used = torch.zeros(fsq.codes if fsq else 1, device=self.layout.device)
        self.model.eval()
        with torch.no_grad():
            for turn in range(-(-clips // self.layout.dp)):
                job = turn * self.layout.dp + self.layout.dp_rank
                number = min(job, clips - 1)
                video = self._validation_clip(split, pairs, number)
                rebuilt = self.model(video).float().clamp(-1, 1)
                if fsq is not None:
                    used[fsq.indices(self._net.encode(video)).flatten()] = 1
                if job < clips:
                    sums[0] += l1(video, rebuilt).double()
                    original, other = _pictures(video), _pictures(rebuilt)
                    sums[1] += psnr(original, other)
                    sums[2] += ssim(original, other)
                    _picture(video, rebuilt, folder / f"clip-{number:02d}.png")
        self.model.train()
        dist.all_reduce(sums)
        dist.all_reduce(used, op=dist.ReduceOp.MAX)
        loss, peak, similarity = (sums / clips).tolist()
        metrics = {"loss": loss, "psnr": peak, "ssim": similarity}
        if fsq is not None:
            metrics["code_usage"] = float(used.mean())
            metrics["codes_used"] = float(used.sum())
        return metrics

    def _validation_clip(
        self, split: Split, pairs: list[tuple[int, int]], number: int
    ) -> torch.Tensor:
        """Of held-out video ``number``, or of the next that a clip can be cut from."""
        seed = seed_of("validation", self.config.data.seed, number)
        problem = ""
        for shard, index in (pairs[(number + more) % len(pairs)] for more in range(len(pairs))):
            # By clip: where one begins, a half damaged video may be readable, and where another
            # does, not. What one rank finds must not decide for clips of other ranks.
            if (number, shard, index) in self.unfit:
                continue
            name, parts = self.source.read(split, shard, index)
            try:
                clip = self.reader.clip(name, _video(name, parts), seed, augment=False)
            except UserError as error:
                problem = str(error)
                self.unfit.add((number, shard, index))
                log.warning("validation clip %d replaced: %s", number, problem)
                continue
            return _unit(clip[None].to(self.layout.device))
        raise UserError(
            f"Of none of the {len(pairs)} held-out videos can a clip be cut. The last: {problem}"
        )

    def work(self, batch: Batch) -> Work:
        """Frames, and the tokenizer's own FLOPs: feature networks of the loss are not counted."""
        samples, _, frames, height, width = batch["video"].shape
        flops = sum(video_flops(self.network, frames, height, width))
        return Work(unit="frames", amount=samples * frames, forward_flops=samples * float(flops))

    def export(self, folder: Path, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        """A canonical folder; bf16 as the official archives are (fp32 for 32-true runs)."""
        from components.lib.cosmos.model_folder import save_model_folder

        bf16 = self.config.trainer.precision == "bf16-mixed"
        state = {name: value.bfloat16() if bf16 else value for name, value in weights}
        state |= self._net.extra_state_tensors()
        save_model_folder(folder, "tokenizer", self.name, self.network, state)

    def describe(self) -> dict[str, Any]:
        """Geometry, validation split, counts."""
        split, pairs = held_out_samples(self.source)
        return {
            "family": "tokenizer",
            "name": self.name,
            "network": self.network.model_dump(mode="json"),
            "trainable_parameters": sum(p.numel() for p in self.model.parameters()),
            "training_samples": sum(self.train_counts()),
            "validation_samples": len(pairs),
            "validation": "held-out" if split == "validation" else "same-video",
        }


def compile_networks(net: CosmosTokenizer, mode: str, backend: str = "inductor") -> None:
    """Compile what lies inside FSDP's hooks of encoder and decoder; the hooks stay as they are.

    In mode ``reduce-overhead`` the kernels are replayed as CUDA graphs, on GPUs only. Graphs are
    recorded again when FSDP gathers weights to other addresses, so results never depend on it.
    """
    chosen = mode if backend == "inductor" else None
    for part in (net.encoder, net.decoder):
        part.forward = torch.compile(part.forward, backend=backend, mode=chosen)


def make_task(
    config: TokenizerTrainingConfig,
    layout: ParallelLayout,
    source: SampleSource,
    manifest: Manifest | None,
    store: ObjectStore | None,
    start: Path | None,
) -> TokenizerTask:
    """The task with the networks that its loss needs."""
    vgg = None
    if needs_vgg(config):
        folder = fetch_model(config.model.vgg_path, store, Path(config.log.log_dir) / "vgg")
        assert folder is not None
        vgg = load_vgg16(folder)
    flow = _open_flow(config, store, layout) if needs_flow(config) else None
    return TokenizerTask(config, layout, source, vgg, start, flow)


def _open_flow(
    config: TokenizerTrainingConfig, store: ObjectStore | None, layout: ParallelLayout
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    path = config.model.flow_path
    if path.startswith("s3://"):
        assert store is not None
        local = Path(config.log.log_dir) / "flow" / f"{layout.rank}.pt"
        local.parent.mkdir(parents=True, exist_ok=True)
        path = str(store.get_file(path, local))
    if not Path(path).is_file():
        raise UserError(f"model.flow_path: there is no file {path}.")
    network = torch.jit.load(path, map_location=layout.device).eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network


def needs_flow(config: TokenizerTrainingConfig) -> bool:
    """Whether the flow term is on at some step of the run. Raises UserError without a network."""
    model, last = config.model, config.trainer.max_steps - 1
    needed = any(scheduled(model.flow_weight, model.flow_boundary, step) for step in (0, last))
    if needed:
        check_weights(model.flow_path, "optical-flow", "model.flow_path")
    return needed


def needs_vgg(config: TokenizerTrainingConfig) -> bool:
    """Whether a feature term is on at some step of the run. Raises UserError without weights."""
    model, last = config.model, config.trainer.max_steps - 1
    terms = (
        (model.perceptual_weight, model.perceptual_boundary),
        (model.gram_weight, model.gram_boundary),
    )
    needed = any(scheduled(*term, step) for term in terms for step in (0, last))
    if needed:
        check_weights(model.vgg_path, "perceptual", "model.vgg_path")
    return needed


def _video(name: str, parts: dict[str, bytes]) -> bytes:
    for extension in ("mp4", "mov", "mkv", "webm", "avi"):
        if extension in parts:
            return parts[extension]
    raise UserError(f"{name} has no video; it holds {', '.join(sorted(parts))}.")


def _unit(video: torch.Tensor) -> torch.Tensor:
    """uint8 -> fp32 in [-1, 1]."""
    return video.float() / 127.5 - 1


def _pictures(video: torch.Tensor) -> torch.Tensor:
    """[1, 3, T, H, W] in [-1, 1] -> [T, 3, H, W] in [0, 1]."""
    return (video[0].transpose(0, 1) + 1) / 2


def _picture(original: torch.Tensor, rebuilt: torch.Tensor, path: Path) -> None:
    """Original above reconstruction, for the first, middle and last frame of [1, 3, T, H, W]."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    frames = original.shape[2]
    chosen = [0, frames // 2, frames - 1]
    rows = [
        torch.cat([video[0, :, frame] for frame in chosen], dim=2) for video in (original, rebuilt)
    ]
    grid = ((torch.cat(rows, dim=1) + 1) * 127.5).round().clamp(0, 255).byte()
    Image.fromarray(grid.permute(1, 2, 0).cpu().numpy()).save(path)


def _name(config: TokenizerTrainingConfig, start: Path | None) -> str:
    if start is None:
        return config.model.model
    from components.lib.cosmos.model_folder import read_model_config

    return read_model_config(start).name
