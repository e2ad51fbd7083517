"""Run a tokenizer's factorised 3-D convolutions as 2-D ones over channels-last memory.

Every convolution of the Cosmos tokenizers is (1, k, k), (3, 1, 1) or 1x1x1. With the channels
innermost in memory the first is a 2-D convolution over a batch of frames, the second a 2-D
convolution over an image of height time and width space, the third a matrix product, and all the
reshaping is free. GPUs' 2-D kernels for that layout are far better tuned than the 3-D ones.
The weights, their names and the result (up to rounding) stay the same.

Attention over the positions of a frame has one head as wide as the channels (512), for which the
fused kernels are slow or missing; it is computed frame by frame with two matrix products. The
Haar patcher becomes one small matrix product per patch, which writes channels-last memory in
order where strided sums and differences would not.

The trade-off: modules change class in place, so a tokenizer is converted for good, and exported
before, not after.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_cosmos import (
    CosmosCausalAttention,
    CosmosCausalConv3d,
    CosmosSpatialAttentionProcessor2_0,
)
from torch import Tensor, nn

from components.lib.cosmos.tokenizer.haar import HaarPatch, HaarUnpatch

_FUSED_HEAD_DIM = 256  # the widest head of the fused attention kernels


class FlatCausalConv3d(CosmosCausalConv3d):
    """The same convolution, computed in two dimensions. [B, C, T, H, W] in and out."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """See the class."""
        x, (kt, kh, kw), weight = hidden_states, self.kernel_size, self.weight
        if (kt, kh, kw) == (1, 1, 1) and self.stride == (1, 1, 1):
            out = F.linear(x.movedim(1, -1), weight[:, :, 0, 0, 0], self.bias)
            return out.movedim(-1, 1)
        if kt == 1:
            frames = x.transpose(1, 2).flatten(0, 1)
            out = F.conv2d(
                frames,
                weight[:, :, 0].contiguous(memory_format=torch.channels_last),
                self.bias,
                stride=self.stride[1:],
                padding=self.spatial_pad[0],
            )
            return out.unflatten(0, (x.shape[0], -1)).transpose(1, 2)
        if (kh, kw) == (1, 1):
            past = x[:, :, :1].expand(-1, -1, self.temporal_pad, -1, -1)
            columns = torch.cat([past, x], dim=2).flatten(3, 4)
            flat = weight[:, :, :, :, 0].contiguous(memory_format=torch.channels_last)
            out = F.conv2d(columns, flat, self.bias, stride=(self.stride[0], 1))
            return out.unflatten(3, x.shape[3:])
        return super().forward(x)


class WideHeadSpatialAttention(CosmosSpatialAttentionProcessor2_0):
    """Attention over H·W with one wide head; [B, C, T, H, W] in and out."""

    def __call__(
        self,
        attn: CosmosCausalAttention,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """See the class. ``attention_mask`` is always None for spatial attention."""
        x = hidden_states
        if not x.is_cuda or x.shape[1] // attn.num_attention_heads <= _FUSED_HEAD_DIM:
            return super().__call__(attn, x, attention_mask)
        normed = attn.norm(x)
        rows = [
            project(normed).movedim(1, -1).flatten(2, 3).flatten(0, 1)  # [B T, H W, C]
            for project in (attn.to_q, attn.to_k, attn.to_v)
        ]
        out = torch.cat(
            [_attend(*frame) for frame in zip(*(r.split(1) for r in rows), strict=True)]
        )
        out = out.unflatten(1, x.shape[3:]).unflatten(0, (x.shape[0], -1)).movedim(-1, 1)
        return attn.to_out[0](out) + x


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = torch.bmm(query * query.shape[-1] ** -0.5, key.transpose(1, 2))
    return torch.bmm(scores.softmax(-1), value)


class MatrixHaarPatch(HaarPatch):
    """`HaarPatch` as a matrix product with the patch's 192 numbers."""

    matrix: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """See `HaarPatch`."""
        p = self.patch
        x = torch.cat([x[:, :, :1].expand(-1, -1, p - 1, -1, -1), x], dim=2)
        x = x.unflatten(4, (-1, p)).unflatten(3, (-1, p)).unflatten(2, (-1, p))
        patches = x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)
        return (patches @ self.matrix.to(x.dtype)).movedim(-1, 1)


class MatrixHaarUnpatch(HaarUnpatch):
    """`HaarUnpatch` as a matrix product."""

    matrix: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """See `HaarUnpatch`."""
        p = self.patch
        patches = (x.movedim(1, -1) @ self.matrix.to(x.dtype)).unflatten(-1, (-1, p, p, p))
        video = patches.permute(0, 4, 1, 5, 2, 6, 3, 7)
        return video.flatten(6, 7).flatten(4, 5).flatten(2, 3)[:, :, p - 1 :]


def _haar_matrix(patch: int, channels: int = 3) -> Tensor:
    """fp32 [channels · p³, channels · p³]: row = pixel of a patch, column = band."""
    size = channels * patch**3
    video = torch.zeros(size, channels, patch + 1, patch, patch)
    video[:, :, 1:] = torch.eye(size).reshape(size, channels, patch, patch, patch)
    return HaarPatch(patch)(video)[:, :, 1].flatten(1)


def use_channels_last(tokenizer: nn.Module) -> None:
    """Convert a tokenizer (or its encoder or decoder) in place. Inputs may have any layout."""
    for module in tokenizer.modules():
        if type(module) is CosmosCausalConv3d:
            module.__class__ = FlatCausalConv3d
        elif isinstance(module, CosmosCausalAttention) and isinstance(
            module.processor, CosmosSpatialAttentionProcessor2_0
        ):
            module.processor = WideHeadSpatialAttention()
        elif type(module) is HaarPatch:
            module.__class__ = MatrixHaarPatch
            module.register_buffer("matrix", _haar_matrix(module.patch), persistent=False)
        elif type(module) is HaarUnpatch:
            module.__class__ = MatrixHaarUnpatch
            inverse = torch.linalg.inv(_haar_matrix(module.patch).double()).float()
            module.register_buffer("matrix", inverse, persistent=False)
    reference = next(tokenizer.parameters())
    tokenizer.to(reference.device)  # the matrices go where the weights are
