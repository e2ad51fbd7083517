"""Give diffusers' Cosmos encoder and decoder the parameter names of the published tokenizers.

The blocks are diffusers' own, arithmetic and all. Only the tree is relabelled: a child is
registered under its published name, while the attribute that diffusers' code reads stays behind
as a plain reference to the same module. Names are thereby real (state dict, optimizer state,
traced exports agree), with no translation when saving or loading. The trade-off: to replace a
child, both places must be set.
"""

from __future__ import annotations

from diffusers.models.autoencoders.autoencoder_kl_cosmos import (
    CosmosCausalAttention,
    CosmosCausalConv3d,
    CosmosConvProjection3d,
    CosmosDecoder3d,
    CosmosDownBlock3d,
    CosmosEncoder3d,
    CosmosMidBlock3d,
    CosmosResnetBlock3d,
    CosmosUpBlock3d,
)
from torch import nn

from components.lib.cosmos.torch_private import children_of


def publish_encoder(encoder: CosmosEncoder3d) -> None:
    """Relabel an encoder in place: ``conv_in``, ``down.N``, ``mid``, ``norm_out``, ``conv_out``."""
    down = [_level(block, "downsamplers", "downsample") for block in encoder.down_blocks]
    _move(encoder, "down_blocks", "down", nn.ModuleList(down))
    _publish_ends(encoder)


def publish_decoder(decoder: CosmosDecoder3d) -> None:
    """Relabel a decoder in place. Its blocks run from the highest number to ``up.0``."""
    up = [_level(block, "upsamplers", "upsample") for block in decoder.up_blocks]
    _move(decoder, "up_blocks", "up", nn.ModuleList(reversed(up)))
    _publish_ends(decoder)


def publish_conv(parent: nn.Module, name: str) -> None:
    """Put a convolution of ``parent`` one level down, as ``name.conv3d``."""
    conv = children_of(parent)[name]
    assert isinstance(conv, CosmosCausalConv3d)
    _move(parent, name, name, _holder(conv3d=conv))


def _publish_ends(part: CosmosEncoder3d | CosmosDecoder3d) -> None:
    _projection(part.conv_in)
    _projection(part.conv_out)
    mid = part.mid_block
    _move(part, "mid_block", "mid", mid)
    assert isinstance(mid, CosmosMidBlock3d)
    spatial, temporal = mid.attentions[0], mid.temp_attentions[0]
    _attention(spatial)
    _attention(temporal)
    _move(mid, "attentions", "attn_1", nn.ModuleList([spatial, temporal]))
    _move(mid, "temp_attentions", None, None)
    first, second = (_resnet(block) for block in mid.resnets)
    _move(mid, "resnets", "block_1", first)
    mid.add_module("block_2", second)


def _level(
    block: CosmosDownBlock3d | CosmosUpBlock3d, sampler_list: str, sampler_name: str
) -> nn.Module:
    blocks = nn.ModuleList([_resnet(resnet) for resnet in block.resnets])
    _move(block, "resnets", "block", blocks)
    samplers = getattr(block, sampler_list)
    if samplers is not None:
        sampler = samplers[0]
        for name in ("conv1", "conv2", "conv3"):
            if isinstance(children_of(sampler)[name], CosmosCausalConv3d):
                publish_conv(sampler, name)
        _move(block, sampler_list, sampler_name, sampler)
    return block


def _resnet(block: CosmosResnetBlock3d) -> nn.Module:
    _projection(block.conv1)
    _projection(block.conv2)
    if isinstance(block.conv_shortcut, CosmosCausalConv3d):
        _move(block, "conv_shortcut", "nin_shortcut", _holder(conv3d=block.conv_shortcut))
    return block


def _projection(pair: CosmosConvProjection3d) -> None:
    _move(pair, "conv_s", "0", _holder(conv3d=pair.conv_s))
    _move(pair, "conv_t", "1", _holder(conv3d=pair.conv_t))


def _attention(attention: CosmosCausalAttention) -> None:
    for old, new in (("to_q", "q"), ("to_k", "k"), ("to_v", "v")):
        _move(attention, old, new, _holder(conv3d=children_of(attention)[old]))
    _move(attention, "to_out", "proj_out", _holder(conv3d=attention.to_out[0]))


def _holder(**children: nn.Module | None) -> nn.Module:
    holder = nn.Module()
    for name, child in children.items():
        holder.add_module(name, child)
    return holder


def _move(parent: nn.Module, old: str, new: str | None, registered: nn.Module | None) -> None:
    """Register ``registered`` as ``new``; keep the child ``old`` as an unregistered attribute."""
    child = children_of(parent).pop(old)
    object.__setattr__(parent, old, child)
    if new is not None:
        # set directly: add_module refuses a name that the plain attribute already has
        children_of(parent)[new] = registered
