"""The Haar patcher of the tokenizers: a 4x4x4 block of pixels becomes 64 channels, losslessly.

Each level halves time, height and width and multiplies the channels by eight. Sums and
differences of strided slices replace the grouped convolutions usual for wavelets: no buffers
(so a model built on the meta device has nothing to restore) and elementwise work that a compiler
fuses.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_AXES = (2, 3, 4)  # time, height, width


class HaarPatch(nn.Module):
    """[B, C, T, H, W] -> [B, C · p³, (T + p - 1) / p, H / p, W / p].

    The first frame is repeated p times, so that 1 + p·k frames divide evenly and the first latent
    frame depends on the first frame alone. The lowest band is the plain mean of its pixels; bands
    are ordered LLL, LLH, LHL, … (time, height, width), each holding all input channels.
    """

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        first = x[:, :, :1].expand(-1, -1, self.patch - 1, -1, -1)
        x = torch.cat([first, x], dim=2)
        for _ in range(self.patch.bit_length() - 1):
            bands = [x]
            for axis in _AXES:
                bands = [part for band in bands for part in _split(band, axis)]
            x = torch.cat(bands, dim=1) / 8
        return x


class HaarUnpatch(nn.Module):
    """The inverse of `HaarPatch`, dropping the repeated first frames."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        for _ in range(self.patch.bit_length() - 1):
            bands = list(x.chunk(8, dim=1))
            for axis in reversed(_AXES):
                pairs = zip(bands[::2], bands[1::2], strict=True)
                bands = [_merge(low, high, axis) for low, high in pairs]
            x = bands[0]
        return x[:, :, self.patch - 1 :]


def _split(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    even, odd = x.unflatten(axis, (-1, 2)).unbind(axis + 1)
    return even + odd, even - odd


def _merge(low: Tensor, high: Tensor, axis: int) -> Tensor:
    return torch.stack([low + high, low - high], dim=axis + 1).flatten(axis, axis + 1)
