"""Low-rank adaptation of the DiT: y = x Wᵀ + (alpha / rank) · x Aᵀ Bᵀ with W frozen.

A and B are cut as the layer they adapt: of a column-parallel layer B holds the rank's outputs, of a
row-parallel one A holds the rank's inputs. The other factor is whole on every tensor-parallel rank
and sees a part of the outputs or inputs, so its gradient is always a part, to be summed.

B starts at zero: the adapted model begins as the base model. The export adds the product to W, so
whoever reads the model need not know.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor import DTensor

from components.lib.contract import UserError
from components.lib.cosmos.dit.config import DiTConfig
from components.lib.cosmos.dit.network import DiT, tp_shard_dims
from components.lib.cosmos.dit.parallel import ColumnLinear, RowLinear, gated_linear, mark_cut
from components.lib.train.data.sampler import seed_of
from components.lib.train.parallel.layout import ParallelLayout, ShardDim
from components.lib.train.parallel.weights import cut_into
from components.lib.train.settings.config import LoraConfig

FACTORS = ("lora_a", "lora_b")


class LoraColumn(ColumnLinear):
    """A column-parallel layer with an update."""

    lora_a: nn.Parameter
    lora_b: nn.Parameter
    lora_scale: float

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The local product and the update's."""
        update = F.linear(F.linear(x, self.lora_a), self.lora_b)
        return F.linear(x, self.weight) + self.lora_scale * update


class LoraRow(RowLinear):
    """A row-parallel layer with an update; both products are partial sums."""

    lora_a: nn.Parameter
    lora_b: nn.Parameter
    lora_scale: float

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """gate * (the local partial product and the update's)."""
        update = gated_linear(F.linear(x, self.lora_a), self.lora_b, gate)
        return gated_linear(x, self.weight, gate) + self.lora_scale * update


def add_lora(model: DiT, config: LoraConfig, frozen: torch.dtype | None = None) -> None:
    """Freeze the model and give every target layer of every block its factors (not yet drawn).

    ``frozen`` is the dtype of the frozen weights (None: as they are). They need no fp32 master
    copy: bf16 halves their memory and is what the official weights are.

    Raises UserError for a target that names no layer, AssertionError when the number of trainable
    parameters is not what the geometry says.
    """
    model.requires_grad_(False)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(frozen or parameter.dtype)
    scale = (config.alpha or config.rank) / config.rank
    targets_met: set[str] = set()
    for name, layer in model.blocks.named_modules():
        target = next((t for t in config.targets if t in name.split(".")), None)
        if target is None or not isinstance(layer, ColumnLinear | RowLinear):
            continue
        targets_met.add(target)
        weight = layer.weight
        layer.register_parameter(
            "lora_a", nn.Parameter(_zeros(weight, config.rank, weight.shape[1]))
        )
        layer.register_parameter(
            "lora_b", nn.Parameter(_zeros(weight, weight.shape[0], config.rank))
        )
        # As the layer's outputs (B) or inputs (A) are cut.
        if isinstance(layer, ColumnLinear):
            mark_cut(layer.get_parameter("lora_b"), 0)
        else:
            mark_cut(layer.get_parameter("lora_a"), 1)
        # The layer keeps its identity (names, hooks, attributes); only its forward changes.
        layer.__class__ = LoraColumn if isinstance(layer, ColumnLinear) else LoraRow
        layer.lora_scale = scale
    if missing := set(config.targets) - targets_met:
        raise UserError(
            f"model.lora.targets names '{min(missing)}', which is no linear layer of a block. "
            "There are: to_q, to_k, to_v, to_out, layer1, layer2."
        )
    size, cut = model.parallel.size, tp_shard_dims(model)
    trainable = sum(
        parameter.numel() * (size if name in cut else 1)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    )
    wanted = trainable_count(model.config, config)
    assert trainable == wanted, f"{trainable} trainable parameters, expected {wanted}"


def _zeros(like: torch.Tensor, *shape: int) -> torch.Tensor:
    return like.new_zeros(shape, dtype=torch.float32)


def trainable_count(dit: DiTConfig, config: LoraConfig) -> int:
    """Parameters of all factors, from the geometry: rank x (inputs + outputs) of each layer."""
    d = dit.hidden
    # Self- and cross-attention have one layer of each name; the latter reads keys from the text.
    sizes = {
        "to_q": [(d, d), (d, d)],
        "to_k": [(d, d), (dit.text_dim, d)],
        "to_v": [(d, d), (dit.text_dim, d)],
        "to_out": [(d, d), (d, d)],
        "layer1": [(d, dit.ffn)],
        "layer2": [(dit.ffn, d)],
    }
    per_block = sum(sum(pair) for target in config.targets for pair in sizes[target])
    return dit.layers * config.rank * per_block


def uncut_factors(model: nn.Module) -> set[str]:
    """Factors whose gradient on a rank is a part: those that tensor parallelism does not cut."""
    cut = tp_shard_dims(model)
    return {n for n, _ in model.named_parameters() if n.endswith(FACTORS) and n not in cut}


@torch.no_grad()
def draw_factors(model: nn.Module, layout: ParallelLayout, cut: ShardDim, seed: int) -> None:
    """A uniform as torch's linear layers start, B zero; the same in every layout."""
    for name, parameter in model.named_parameters():
        if not name.endswith(FACTORS):
            continue
        assert isinstance(parameter, DTensor)
        if name.endswith("lora_b"):
            parameter.to_local().zero_()
            continue
        shape = list(parameter.shape)
        dim = cut(name)
        if dim is not None:
            shape[dim] *= layout.tp
        generator = torch.Generator().manual_seed(seed_of("lora", seed, name))
        bound = 1 / math.sqrt(shape[1])
        full = (2 * torch.rand(shape, generator=generator) - 1) * bound
        cut_into(parameter, full, layout, dim)


def merged(
    weights: Iterator[tuple[str, torch.Tensor]], config: LoraConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    """Full weights with each update added to its layer and the factors left out.

    Relies on a module's state dict naming ``weight`` before its factors, A before B.
    """
    scale = (config.alpha or config.rank) / config.rank
    pending: dict[str, torch.Tensor] = {}
    for name, value in weights:
        if name.endswith(FACTORS):
            prefix, _, factor = name.rpartition(".")
            if factor == "lora_a":
                pending["lora_a"] = value
                continue
            base = pending.pop(f"{prefix}.weight")
            yield f"{prefix}.weight", base + scale * value @ pending.pop("lora_a")
            continue
        for done in list(pending):
            yield done, pending.pop(done)
        pending[name] = value
    yield from pending.items()
