"""The tokenizer's encoder with its linear neighbours folded together, for encoding only.

The same function of the same weights as `CosmosTokenizer.encode`, arranged for speed. Activations
lie as [B, T, H, W, C], so that every convolution of the factorised network is a two-dimensional
one in the layout libraries like best: the spatial ones over (H, W) with time as batch, the
temporal ones over (T, H·W). What is linear next to linear is multiplied out once at loading: the
Haar transform into the first convolution (what is left of it is a permutation of bytes), average
pooling and the projection after it into the strided convolutions, the quantiser's projection into
the last. In fp32 the result agrees with the plain encoder to rounding; in bf16 it rounds less
often. The price is this second description of the network, which a test compares with the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from components.lib.cosmos.tokenizer.network import CosmosTokenizer

Layer = Callable[[Tensor], Tensor]
EPS = 1e-6


def can_fold(tokenizer: CosmosTokenizer) -> bool:
    """Whether `fold_encoder` knows this network: continuous, no attention inside its levels."""
    levels = tokenizer.encoder.down_blocks
    inside = any(part is not None for level in levels for part in level.attentions)
    return not tokenizer.discrete and not inside


def fold_encoder(tokenizer: CosmosTokenizer, dtype: torch.dtype) -> Layer:
    """An encoder of bytes [B, T, H, W, 3] to latents [B, C, T', H', W'] in ``dtype``.

    Weights are folded in fp32 and then rounded to ``dtype``, on the tokenizer's device. T is at
    most the tokenizer's window. For tokenizers that `can_fold` accepts.
    """
    encoder = tokenizer.encoder
    layers: list[Layer] = [*_projection(encoder.conv_in, dtype, before=_haar_matrix(tokenizer))]
    for level in encoder.down_blocks:
        layers += [_resnet(block, dtype) for block in level.resnets]
        for sampler in level.downsamplers or ():
            layers += _downsample(sampler, dtype)
    mid = encoder.mid_block
    layers += [
        _resnet(mid.resnets[0], dtype),
        _attention(mid.attentions[0], dtype, temporal=False),
        _attention(mid.temp_attentions[0], dtype, temporal=True),
        _resnet(mid.resnets[1], dtype),
        _norm(encoder.norm_out, dtype, activate=True),
        *_projection(encoder.conv_out, dtype, after=tokenizer.quant_conv),
    ]
    patch = tokenizer.config.patch

    def encode(video: Tensor) -> Tensor:
        x = patches(video, patch).to(dtype).div_(127.5).sub_(1.0)
        for layer in layers:
            x = layer(x)
        return x.permute(0, 4, 1, 2, 3)

    return encode


def patches(video: Tensor, patch: int) -> Tensor:
    """Bytes [B, T, H, W, 3] -> [B, (T+p-1)/p, H/p, W/p, 3p³], the first frame repeated p times."""
    batch, _, height, width, colours = video.shape
    video = torch.cat([video[:, :1].expand(-1, patch - 1, -1, -1, -1), video], dim=1)
    blocks = video.view(batch, -1, patch, height // patch, patch, width // patch, patch, colours)
    return blocks.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4).contiguous()


def _haar_matrix(tokenizer: CosmosTokenizer) -> Tensor:
    """[bands, pixels of a patch in the order of `patches`], fp32 on the CPU."""
    patch = tokenizer.config.patch
    size = 3 * patch**3
    basis = torch.eye(size).view(size, patch, patch, patch, 3).permute(0, 4, 1, 2, 3)
    # A frame in front of the basis takes the repetition of the first frame upon itself.
    video = torch.cat([torch.zeros_like(basis[:, :, :1]), basis], dim=2)
    bands: Tensor = tokenizer.encoder.patch_embed(video)
    return bands[:, :, 1, 0, 0].T.contiguous()


def _weights(conv: Any) -> tuple[Tensor, Tensor]:
    """Weight [O, I, T, H, W] and bias of a convolution, fp32."""
    return conv.weight.detach().float(), conv.bias.detach().float()


def _projection(
    pair: Any, dtype: torch.dtype, before: Tensor | None = None, after: Any = None
) -> list[Layer]:
    """A factorised convolution; ``before`` [I, J] acts on its input, ``after`` on its output."""
    weight, bias = _weights(pair.conv_s)
    if before is not None:
        weight = torch.einsum("oithw,ij->ojthw", weight, before.to(weight.device))
    temporal, temporal_bias = _weights(pair.conv_t)
    if after is not None:
        temporal, temporal_bias = _compose(after, temporal, temporal_bias)
    return [
        _spatial_conv(weight[:, :, 0], bias, dtype, padding=1),
        _temporal_conv(temporal[..., 0, 0], temporal_bias, dtype),
    ]


def _compose(after: Any, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of a 1x1x1 convolution applied after another one."""
    outer, outer_bias = _weights(after)
    matrix = outer.flatten(1)
    return torch.einsum("po,oithw->pithw", matrix, weight), matrix @ bias + outer_bias


def _spatial_conv(
    weight: Tensor, bias: Tensor, dtype: torch.dtype, padding: int = 0, stride: int = 1
) -> Layer:
    """Convolution [O, I, h, w] of every frame."""
    weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
    bias = bias.to(dtype)

    def apply(x: Tensor) -> Tensor:
        frames = x.flatten(0, 1).permute(0, 3, 1, 2)
        y = F.conv2d(frames, weight, bias, stride=stride, padding=padding)
        return y.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])

    return apply


def _temporal_conv(weight: Tensor, bias: Tensor, dtype: torch.dtype, stride: int = 1) -> Layer:
    """Causal convolution [O, I, 3] along time: the past of the first frame is the first frame."""
    weight = weight[..., None].to(dtype).contiguous(memory_format=torch.channels_last)
    bias = bias.to(dtype)

    def apply(x: Tensor) -> Tensor:
        past = x[:, :1].expand(-1, 2, -1, -1, -1)
        rows = torch.cat([past, x], dim=1).flatten(2, 3).permute(0, 3, 1, 2)
        y = F.conv2d(rows, weight, bias, stride=(stride, 1))
        return y.permute(0, 2, 3, 1).unflatten(2, x.shape[2:4])

    return apply


def _linear(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Layer:
    """A 1x1x1 convolution."""
    matrix, offset = weight.flatten(1).to(dtype).contiguous(), bias.to(dtype)
    return lambda x: F.linear(x, matrix, offset)


def _norm(norm: Any, dtype: torch.dtype, activate: bool) -> Layer:
    """Group norm with one group per frame, then SiLU if ``activate``."""
    scale = norm.norm.weight.detach().to(dtype)
    shift = norm.norm.bias.detach().to(dtype)

    def apply(x: Tensor) -> Tensor:
        y = torch.addcmul(shift, _standardise(x.flatten(2)).view(x.shape), scale)
        return F.silu(y, inplace=True) if activate else y

    return apply


def _standardise(rows: Tensor) -> Tensor:
    """(x - mean) / std over the last dimension."""
    if not rows.is_cuda:
        return F.layer_norm(rows, rows.shape[-1:], eps=EPS)
    # A GPU's layer norm gives each row to one block; a frame has millions of values.
    wide = rows.float()
    variance, mean = torch.var_mean(wide, dim=-1, correction=0, keepdim=True)
    return ((wide - mean) * torch.rsqrt(variance + EPS)).to(rows.dtype)


def _resnet(block: Any, dtype: torch.dtype) -> Layer:
    """norm, SiLU, convolution, twice, plus the input."""
    layers = [
        _norm(block.norm1, dtype, activate=True),
        *_projection(block.conv1, dtype),
        _norm(block.norm2, dtype, activate=True),
        *_projection(block.conv2, dtype),
    ]
    same = isinstance(block.conv_shortcut, torch.nn.Identity)
    shortcut = None if same else _linear(*_weights(block.conv_shortcut), dtype)

    def apply(x: Tensor) -> Tensor:
        y = x
        for layer in layers:
            y = layer(y)
        return y.add_(x if shortcut is None else shortcut(x))

    return apply


def _downsample(sampler: Any, dtype: torch.dtype) -> list[Layer]:
    """Halve space, then time; pooling and the projection after it are part of the convolutions."""
    layers: list[Layer] = []
    if sampler.spatial_downsample:
        weight, bias = _weights(sampler.conv1)
        pooled = weight[:, :, 0].clone()
        pooled[:, :, :2, :2] += 0.25 * _identity(pooled)[..., None, None]
        weight = pooled[:, :, None]
        if not sampler.temporal_downsample:
            weight, bias = _compose(sampler.conv3, weight, bias)
        conv = _spatial_conv(weight[:, :, 0], bias, dtype, stride=2)
        layers.append(lambda x: conv(F.pad(x, (0, 0, 0, 1, 0, 1))))
    if sampler.temporal_downsample:
        weight, bias = _weights(sampler.conv2)
        pooled = weight.clone()
        pooled[:, :, 1:, 0, 0] += 0.5 * _identity(pooled)[..., None]
        weight, bias = _compose(sampler.conv3, pooled, bias)
        layers.append(_temporal_conv(weight[..., 0, 0], bias, dtype, stride=2))
    return layers


def _identity(weight: Tensor) -> Tensor:
    return torch.eye(weight.shape[0], device=weight.device)


def _attention(attention: Any, dtype: torch.dtype, temporal: bool) -> Layer:
    """Single-head attention over the pixels of a frame, or causally over the frames of a pixel."""
    norm = _norm(attention.norm, dtype, activate=False)
    parts = [_weights(conv) for conv in (attention.to_q, attention.to_k, attention.to_v)]
    project = _linear(
        torch.cat([weight for weight, _ in parts]), torch.cat([bias for _, bias in parts]), dtype
    )
    finish = _linear(*_weights(attention.to_out[0]), dtype)

    def apply(x: Tensor) -> Tensor:
        tokens = project(norm(x)).flatten(2, 3)  # [B, T, HW, 3C]
        if temporal:
            tokens = tokens.transpose(1, 2)
        # With a dimension for the one head, the fused kernels take it.
        query, key, value = tokens.flatten(0, 1)[:, None].chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(query, key, value, is_causal=temporal)
        y = y.reshape(*tokens.shape[:3], -1)
        if temporal:
            y = y.transpose(1, 2)
        return x + finish(y.reshape(x.shape))

    return apply
