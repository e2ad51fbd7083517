"""The video tokenizers as scriptable modules whose parameters bear the official names.

The training network is built on diffusers' blocks; TorchScript needs code that it can compile and
archives whose `state_dict` reads as the published ones do. So this is a second, plain writing of
the same arithmetic, compiled with `torch.jit.script`: unlike a trace it holds for every length
8k+1 and every size divisible by the compression, in any dtype. The Haar transform is written with
sums and differences (powers of two, hence exact) and not as convolutions.

Tests hold the outputs against the training network. The trade-off is the second writing itself.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.lib.cosmos.tokenizer.config import TokenizerConfig


class Conv(nn.Module):
    """Convolution that sees only the past: time is padded in front with the first frame."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int, int] = (1, 1, 1),
        stride: tuple[int, int, int] = (1, 1, 1),
        padding: int = 0,
    ) -> None:
        super().__init__()
        self.past = kernel[0] - 1 + 1 - stride[0]
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, (0, padding, padding))

    def forward(self, x: Tensor) -> Tensor:
        if self.past > 0:
            x = torch.cat([x[:, :, :1].repeat(1, 1, self.past, 1, 1), x], dim=2)
        return self.conv3d(x)


def factorised(inputs: int, outputs: int) -> nn.Sequential:
    """A 3x3 convolution in space, then one over three frames."""
    return nn.Sequential(
        Conv(inputs, outputs, (1, 3, 3), padding=1), Conv(outputs, outputs, (3, 1, 1))
    )


class Norm(nn.Module):
    """Normalises each frame over all its channels and pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        b, c, t, h, w = x.shape
        frames = x.transpose(1, 2).reshape(b * t, c, h, w)
        return self.norm(frames).reshape(b, t, c, h, w).transpose(1, 2)


class ResBlock(nn.Module):
    """norm, SiLU, convolution, twice, plus the input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = Norm(inputs)
        self.conv1 = factorised(inputs, outputs)
        self.norm2 = Norm(outputs)
        self.conv2 = factorised(outputs, outputs)
        self.nin_shortcut = Conv(inputs, outputs) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        if self.nin_shortcut is not None:
            x = self.nin_shortcut(x)
        return x + y


class Attention(nn.Module):
    """One head of attention: over the pixels of a frame, or causally over the frames of a pixel."""

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        self.temporal = temporal
        self.norm = Norm(channels)
        self.q = Conv(channels, channels)
        self.k = Conv(channels, channels)
        self.v = Conv(channels, channels)
        self.proj_out = Conv(channels, channels)

    def fold(self, x: Tensor) -> Tensor:
        b, c, t, h, w = x.shape
        if self.temporal:
            return x.permute(0, 3, 4, 2, 1).reshape(b * h * w, 1, t, c)
        return x.permute(0, 2, 3, 4, 1).reshape(b * t, 1, h * w, c)

    def forward(self, x: Tensor) -> Tensor:
        b, c, t, h, w = x.shape
        y = self.norm(x)
        y = F.scaled_dot_product_attention(
            self.fold(self.q(y)),
            self.fold(self.k(y)),
            self.fold(self.v(y)),
            is_causal=self.temporal,
        )
        if self.temporal:
            y = y.reshape(b, h, w, t, c).permute(0, 4, 3, 1, 2)
        else:
            y = y.reshape(b, t, h, w, c).permute(0, 4, 1, 2, 3)
        return x + self.proj_out(y)


class Mid(nn.Module):
    """Residual block, attention over space and over time, residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels)
        self.attn_1 = nn.Sequential(Attention(channels, False), Attention(channels, True))
        self.block_2 = ResBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Down(nn.Module):
    """Halves space and/or time: strided convolution plus average pooling of the same input."""

    def __init__(self, channels: int, spatial: bool, temporal: bool) -> None:
        super().__init__()
        self.conv1 = Conv(channels, channels, (1, 3, 3), (1, 2, 2)) if spatial else None
        self.conv2 = Conv(channels, channels, (3, 1, 1), (2, 1, 1)) if temporal else None
        self.conv3 = Conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv1 is not None:
            # Means are written out: average pooling has no bfloat16 kernel on the CPU.
            rows = x[:, :, :, 0::2] + x[:, :, :, 1::2]
            pooled = (rows[..., 0::2] + rows[..., 1::2]) * 0.25
            x = self.conv1(F.pad(x, [0, 1, 0, 1, 0, 0])) + pooled
        if self.conv2 is not None:
            x = torch.cat([x[:, :, :1], x], dim=2)
            x = self.conv2(x) + (x[:, :, 0::2] + x[:, :, 1::2]) * 0.5
        return self.conv3(x)


class Up(nn.Module):
    """Doubles time (but the first frame) and/or space: repetition plus a convolution of it."""

    def __init__(self, channels: int, spatial: bool, temporal: bool) -> None:
        super().__init__()
        self.conv1 = Conv(channels, channels, (3, 1, 1)) if temporal else None
        self.conv2 = Conv(channels, channels, (1, 3, 3), padding=1) if spatial else None
        self.conv3 = Conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv1 is not None:
            if x.shape[2] > 1:
                x = x.repeat_interleave(2, dim=2)[:, :, 1:]
            x = self.conv1(x) + x
        if self.conv2 is not None:
            x = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
            x = self.conv2(x) + x
        return self.conv3(x)


class DownLevel(nn.Module):
    """Residual blocks of one resolution, then a halving."""

    def __init__(self, block: list[nn.Module], downsample: Down | None) -> None:
        super().__init__()
        self.block = nn.Sequential(*block)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        if self.downsample is not None:
            x = self.downsample(x)
        return x


class UpLevel(nn.Module):
    """Residual blocks of one resolution, then a doubling."""

    def __init__(self, block: list[nn.Module], upsample: Up | None) -> None:
        super().__init__()
        self.block = nn.Sequential(*block)
        self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        if self.upsample is not None:
            x = self.upsample(x)
        return x


class Haar(nn.Module):
    """Three-dimensional Haar transform of ``patch``-sized cubes, as the published one scales it."""

    def __init__(self, patch: int, inverse: bool) -> None:
        super().__init__()
        self.patch = patch
        self.rounds = int(math.log2(patch))
        self.inverse = inverse
        # Carried because the published archives carry them; the arithmetic does not read them.
        self.register_buffer("wavelets", torch.full((2,), 0.5**0.5))
        self.register_buffer("_arange", torch.arange(2))
        self.register_buffer("patch_size_buffer", torch.tensor([patch], dtype=torch.int32))

    def split(self, x: Tensor) -> Tensor:
        low, high = x[:, :, 0::2] + x[:, :, 1::2], x[:, :, 0::2] - x[:, :, 1::2]
        bands = [low * 0.5, high * 0.5]
        rows: list[Tensor] = []
        for y in bands:
            rows.append((y[:, :, :, 0::2] + y[:, :, :, 1::2]) * 0.5)
            rows.append((y[:, :, :, 0::2] - y[:, :, :, 1::2]) * 0.5)
        out: list[Tensor] = []
        for y in rows:
            out.append((y[..., 0::2] + y[..., 1::2]) * 0.5)
            out.append((y[..., 0::2] - y[..., 1::2]) * 0.5)
        return torch.cat(out, dim=1)

    def merge(self, x: Tensor) -> Tensor:
        bands = 8
        for dim in [4, 3, 2]:  # each pass joins neighbouring (low, high) bands
            b, c, t, h, w = x.shape
            x = x.reshape(b, bands // 2, 2, c // bands, t, h, w)
            low, high = x[:, :, 0], x[:, :, 1]
            x = torch.stack([low + high, low - high], dim=dim + 2)
            shape = [b, c // 2, t, h, w]
            shape[dim] = shape[dim] * 2
            x = x.reshape(shape)
            bands = bands // 2
        return x

    def forward(self, x: Tensor) -> Tensor:
        if self.inverse:
            for _ in range(self.rounds):
                x = self.merge(x)
            return x[:, :, self.patch - 1 :]
        x = torch.cat([x[:, :, :1].repeat(1, 1, self.patch - 1, 1, 1), x], dim=2)
        for _ in range(self.rounds):
            x = self.split(x)
        return x


class Encoder(nn.Module):
    """Video [B, 3, T, H, W] in [-1, 1] to features [B, z, 1 + (T-1)/8, H/s, W/s]."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.patcher3d = Haar(config.patch, inverse=False)
        self.conv_in = factorised(3 * config.patch**3, config.channels)
        width = config.channels
        levels: list[nn.Module] = []
        for i, multiplier in enumerate(config.multipliers):
            block: list[nn.Module] = []
            for _ in range(config.res_blocks):
                block.append(ResBlock(width, config.channels * multiplier))
                width = config.channels * multiplier
            steps = config.down_steps(i)
            last = i == len(config.multipliers) - 1
            levels.append(
                DownLevel(block, Down(width, *steps) if any(steps) and not last else None)
            )
        self.down = nn.Sequential(*levels)
        self.mid = Mid(width)
        self.norm_out = Norm(width)
        self.conv_out = factorised(width, config.z_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.down(self.conv_in(self.patcher3d(x))))
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """The way back from features to video."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        width = config.channels * config.multipliers[-1]
        self.conv_in = factorised(config.z_channels, width)
        self.mid = Mid(width)
        levels: OrderedDict[str, nn.Module] = OrderedDict()
        count = len(config.multipliers)
        for r, multiplier in enumerate(reversed(config.multipliers)):
            block: list[nn.Module] = []
            for _ in range(config.res_blocks + 1):
                block.append(ResBlock(width, config.channels * multiplier))
                width = config.channels * multiplier
            steps = config.up_steps(r)
            up = Up(width, *steps) if any(steps) and r < count - 1 else None
            levels[str(count - 1 - r)] = UpLevel(block, up)
        # Inserted from the coarsest to the finest, and run in that order.
        self.up = nn.Sequential(levels)
        self.norm_out = Norm(width)
        self.conv_out = factorised(width, 3 * config.patch**3)
        self.unpatcher3d = Haar(config.patch, inverse=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.mid(self.conv_in(x)))
        return self.unpatcher3d(self.conv_out(F.silu(self.norm_out(x))))
