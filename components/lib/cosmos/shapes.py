"""Networks without their weights: built on the meta device, whose tensors have shapes, no values.

What a checkpoint must hold and what a network costs is thereby asked of the network itself. The
price is torch, a second or two on the first call, so modules that must start at once import this
one inside their functions or go without. Call it outside tensor-parallel groups, which cut a DiT.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from components.lib.contract import Frozen
from components.lib.cosmos.families import family_of

if TYPE_CHECKING:
    from torch import nn

Shapes = dict[str, tuple[int, ...]]

#: How published tokenizers list their parts. Ours are registered in the order of diffusers' blocks.
_ORDER = ("conv_in", "down", "mid", "block_1", "attn_1", "block_2", "up", "norm_out", "conv_out")


@cache
def meta_network(settings: Frozen) -> nn.Module:
    """The network of these settings on the meta device."""
    import torch

    family = family_of(settings)
    build: Callable[..., nn.Module] = family.load(family.network)
    with torch.device("meta"):
        return build(settings)


def state_shapes(config: Frozen) -> Shapes:
    """Name and shape of every tensor of the state dict, in the published order."""
    state = meta_network(config).state_dict()
    parts = list(dict.fromkeys(name.split(".")[0] for name in state))

    def place(name: str) -> list[int]:
        part, *inner = name.split(".")
        return [parts.index(part), *(_ORDER.index(word) for word in inner[:2] if word in _ORDER)]

    return {name: tuple(state[name].shape) for name in sorted(state, key=place)}


def parameter_count(config: Frozen) -> int:
    """Numbers that are trained: buffers are left out."""
    return sum(parameter.numel() for parameter in meta_network(config).parameters())
