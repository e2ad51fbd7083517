"""The Cosmos-1.0 diffusion transformer, with the published names, shapes and arithmetic.

One model serves one GPU and a tensor-parallel group: built while megatron-core's `parallel_state`
holds a group of several ranks, each rank allocates its slice. With sequence parallelism all that
lies between attention and MLP (embedding and final layer included) runs on a rank's own rows, so
every parameter that is not cut gets a partial gradient and one rule sums them all
(`tp_partial_gradient_names`). Works without torch.distributed and on the meta device.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.lib.cosmos.conditions import Conditions, over_latent
from components.lib.cosmos.dit.attention import AttentionBackend
from components.lib.cosmos.dit.block import (
    Attention,
    Checkpointing,
    Modulation,
    TransformerBlock,
    modulate,
)
from components.lib.cosmos.dit.config import DIT_PRESETS, DiTConfig
from components.lib.cosmos.dit.parallel import TensorParallel, tensor_parallel_group
from components.lib.cosmos.dit.rope import Counter, LearnablePositions, rotary_angles

__all__ = [
    "DIT_PRESETS",
    "DiT",
    "DiTConfig",
    "configure_blocks",
    "initialise",
    "tp_partial_gradient_names",
    "tp_shard_dims",
]


class PatchEmbed(nn.Module):
    """``x_embedder``: [B, C, T, H, W] -> tokens [T·H·W, B, features] -> hidden."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        features = config.in_channels * config.patch_volume
        # the published names call this layer number 1 of a sequence whose number 0 rearranges
        self.proj = nn.Sequential(nn.Identity(), nn.Linear(features, config.hidden, bias=False))

    @property
    def dtype(self) -> torch.dtype:
        """In which the network computes: that of the weights as they are now."""
        weight = self.proj[1].weight
        assert isinstance(weight, Tensor)
        return weight.dtype

    def patches(self, x: Tensor) -> Tensor:
        """Features of a token in the order channel, time, height, width."""
        t, s = self.config.patch_temporal, self.config.patch_spatial
        x = x.unflatten(2, (-1, t)).unflatten(4, (-1, s)).unflatten(6, (-1, s))
        return x.permute(2, 4, 6, 0, 1, 3, 5, 7).flatten(4).flatten(0, 2)


class TimeEmbedding(nn.Module):
    """``t_embedder.1``: sinusoid -> hidden -> 3 · hidden, the term shared by all modulations."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(config.hidden, config.hidden, bias=False)
        self.linear_2 = nn.Linear(config.hidden, 3 * config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, hidden] -> [B, 3 · hidden]."""
        return self.linear_2(F.silu(self.linear_1(x)))


class FinalLayer(nn.Module):
    """``final_layer``: modulated norm and the projection to patches."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        features = config.latent_channels * config.patch_volume
        self.linear = nn.Linear(config.hidden, features, bias=False)
        self.adaLN_modulation = Modulation(config, 2)

    def forward(self, x: Tensor, noise: Tensor, shared: Tensor) -> Tensor:
        """[rows, B, hidden] -> [rows, B, patch features]."""
        two = shared[..., : 2 * x.shape[-1]]
        shift, scale = (self.adaLN_modulation(noise) + two).chunk(2, dim=-1)
        return self.linear(modulate(x, shift, scale, self.eps))


class DiT(nn.Module):
    """F(c_in · x_t, c_noise, conditions) of the EDM formulation (see `edm.denoise`).

    ``sequence_parallel`` takes effect inside a tensor-parallel group. ``seed`` draws the initial
    weights, the same in every layout; None (or the meta device) leaves them unset for loading.
    """

    def __init__(
        self, config: DiTConfig, *, sequence_parallel: bool = False, seed: int | None = 0
    ) -> None:
        super().__init__()
        self.config = config
        self.parallel = TensorParallel(tensor_parallel_group(), sequence_parallel)
        self.x_embedder = PatchEmbed(config)
        self.pos_embedder = Counter(config)
        self.extra_pos_embedder = LearnablePositions(config)
        self.t_embedder = nn.Sequential(nn.Identity(), TimeEmbedding(config))
        self.blocks = nn.ModuleDict(
            {f"block{i}": TransformerBlock(config, self.parallel) for i in range(config.layers)}
        )
        self.final_layer = FinalLayer(config)
        self.affline_norm = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        if seed is not None and not self.affline_norm.weight.is_meta:
            initialise(self, seed)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        conditions: Conditions,
    ) -> Tensor:
        """The raw network output, [B, latent channels, T, H, W] in the parameters' dtype.

        ``x`` [B, 16, T, H, W]; ``c_noise`` [B] (¼ ln σ). Without a padding mask nothing is
        padding; ``shown_frames`` are for Video2World, and needed there. ValueError when the latent
        or the conditions do not fit the model.
        """
        dtype = self.x_embedder.dtype
        batch, _, frames, height, width = x.shape
        grid = self.config.grid(frames, height, width)
        tokens = math.prod(grid)
        inputs = self._channels(x.to(dtype), conditions)
        local = self.parallel.local
        hidden = self.x_embedder.proj[1](local(self.x_embedder.patches(inputs)))
        positions = local(self.extra_pos_embedder(grid))
        rotary = rotary_angles(self.config, self.pos_embedder.seq, grid, conditions.fps, batch)
        wave = sinusoid(c_noise.reshape(-1), self.config.hidden).to(dtype)
        shared = self.t_embedder[1](wave)
        noise = self.affline_norm(wave)
        memory = conditions.text.to(dtype).transpose(0, 1)
        for block in self.blocks.values():
            hidden = block(hidden, positions, noise, shared, memory, rotary, tokens)
        out = self.final_layer(hidden, noise, shared)
        return self._unpatch(self.parallel.collect(out, tokens), grid)

    def _channels(self, x: Tensor, conditions: Conditions) -> Tensor:
        """The input of the patch embedding: latent, shown frames, padding, in published order."""
        batch, channels, frames, height, width = x.shape
        if channels != self.config.latent_channels:
            raise ValueError(
                f"the latent has {channels} channels, the model takes {self.config.latent_channels}"
            )
        shown = conditions.shown_frames
        if self.config.condition_mask != (shown is not None):
            need = "needs" if self.config.condition_mask else "does not take"
            raise ValueError(f"this model {need} frames that are shown to it")
        parts = [x]
        if shown is not None:
            parts.append(over_latent(shown.to(x), x))
        if conditions.padding_mask is None:
            parts.append(x.new_zeros(1).expand(batch, 1, frames, height, width))
        else:
            padding = conditions.padding_mask.to(x)
            small = F.interpolate(padding, size=(height, width), mode="nearest")
            parts.append(small[:, :, None].expand(batch, 1, frames, height, width))
        return torch.cat(parts, dim=1)

    def _unpatch(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """[tokens, B, features] -> [B, C, T, H, W]; here the channel is the last feature."""
        t, s = self.config.patch_temporal, self.config.patch_spatial
        x = x.unflatten(-1, (s, s, t, -1)).unflatten(0, grid)  # T H W B p1 p2 t C
        x = x.permute(3, 7, 0, 6, 1, 4, 2, 5)
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def sinusoid(values: Tensor, size: int) -> Tensor:
    """[B] -> [B, size] fp32: cosines, then sines, of frequencies 10000^(-i / (size / 2))."""
    half = size // 2
    steps = torch.arange(half, dtype=torch.float32, device=values.device)
    angles = values.float()[:, None] * torch.exp(-math.log(10000.0) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def configure_blocks(
    model: DiT,
    *,
    checkpointing: Checkpointing | Sequence[Checkpointing] = "none",
    compile_blocks: bool = False,
    compiler: str | Callable[..., Any] = "inductor",
    attention: AttentionBackend | None = None,
) -> None:
    """Set how the blocks run. Call before training; FSDP may wrap the blocks before or after.

    ``selective`` checkpointing keeps attention outputs and recomputes the rest: attention is the
    largest part of a block's time and the smallest of what it saves. ``light`` also keeps the
    results of matrix products; ``full`` recomputes all. One word for all blocks, or one for each.
    ``attention`` is what `components.lib.cosmos.dit.attention.choose` makes of the wish on a
    device; None leaves it.
    Compiled blocks share their graphs, one for each way they run (``compiler`` is a backend of
    torch.compile).
    """
    count = len(model.blocks)
    kinds = [checkpointing] * count if isinstance(checkpointing, str) else checkpointing
    for block, kind in zip(model.blocks.values(), kinds, strict=True):
        assert isinstance(block, TransformerBlock)
        block.checkpointing = kind
        for module in block.modules():
            if attention is not None and isinstance(module, Attention):
                module.backend = attention
        if compile_blocks:
            block.compile_ways(compiler)


def tp_shard_dims(model: nn.Module) -> dict[str, int]:
    """The parameters that tensor parallelism cuts, and along which dimension, by their names.

    Their layers say so (`parallel`). FSDP replaces parameters, so ask before it does.
    """
    parameters: dict[str, Any] = dict(model.named_parameters())
    return {
        name: int(parameter.partition_dim)
        for name, parameter in parameters.items()
        if getattr(parameter, "tensor_model_parallel", False)
    }


def tp_partial_gradient_names(model: DiT) -> list[str]:
    """Parameters whose gradient on a rank is a part; the trainer sums them over the TP group.

    The norms of q and k see a rank's heads only. With sequence parallelism everything that is not
    cut sees a rank's tokens only.
    """
    if model.parallel.size == 1:
        return []
    cut = tp_shard_dims(model)
    uncut = [name for name, _ in model.named_parameters() if name not in cut]
    if model.parallel.sequence:
        return uncut
    return [name for name in uncut if name.endswith((".to_q.1.weight", ".to_k.1.weight"))]


@torch.no_grad()
def initialise(model: DiT, seed: int) -> None:
    """Weights for training from scratch, equal in every tensor-parallel layout.

    Each parameter is drawn whole on the CPU from a generator of its own and then cut: Xavier for
    linear layers, normal(0.02) for the time embedding, zero for the last modulation matrix of a
    block, truncated normal(0.02) for the position tables, one for norms.
    """
    parallel, cut = model.parallel, tp_shard_dims(model)
    for name, parameter in model.named_parameters():
        dim = cut.get(name)
        shape = list(parameter.shape)
        if dim is not None:
            shape[dim] *= parallel.size
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        value = _initial_value(name, torch.empty(shape), generator)
        if dim is not None:
            value = value.chunk(parallel.size, dim=dim)[parallel.rank]
        parameter.copy_(value)
    counter = model.pos_embedder.seq
    counter.copy_(torch.arange(counter.shape[0], dtype=torch.float32))


def _initial_value(name: str, value: Tensor, generator: torch.Generator) -> Tensor:
    if value.dim() == 1:
        return value.fill_(1.0)
    if name.startswith("extra_pos_embedder"):
        return nn.init.trunc_normal_(value, std=0.02, generator=generator)
    if name.startswith("t_embedder"):
        return nn.init.normal_(value, std=0.02, generator=generator)
    if name.startswith("blocks") and name.endswith("adaLN_modulation.2.weight"):
        return value.zero_()
    return nn.init.xavier_uniform_(value, generator=generator)
