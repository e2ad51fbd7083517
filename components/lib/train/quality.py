"""PSNR and SSIM of videos in [-1, 1], the figures of tokenizer validation.

SSIM follows Wang et al. 2004: an 11 x 11 Gaussian window of standard deviation 1.5, per frame and
colour channel, valid positions only, then the mean.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

_WINDOW, _SIGMA = 11, 1.5


def psnr(original: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """[B] in dB, for videos [B, 3, T, H, W] in [-1, 1]; the peak-to-peak range is 2."""
    error = (original.float() - other.float()).pow(2).flatten(1).mean(1).clamp_min(1e-10)
    return 10 * torch.log10(4.0 / error)


def ssim(original: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """[B], for videos [B, 3, T, H, W] in [-1, 1] of at least 11 x 11 pixels."""
    batch = original.shape[0]
    x, y = (_frames(video) for video in (original, other))
    kernel = _gaussian(x.device)

    def blur(image: torch.Tensor) -> torch.Tensor:
        rows = F.conv2d(image, kernel.view(1, 1, -1, 1))
        return F.conv2d(rows, kernel.view(1, 1, 1, -1))

    mean_x, mean_y = blur(x), blur(y)
    var_x = blur(x * x) - mean_x**2
    var_y = blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    value = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    )
    return value.view(batch, -1).mean(1)


def _frames(video: torch.Tensor) -> torch.Tensor:
    """[B, 3, T, H, W] in [-1, 1] -> [B·3·T, 1, H, W] in [0, 1]."""
    return ((video.float() + 1) / 2).reshape(-1, 1, *video.shape[3:])


def _gaussian(device: torch.device) -> torch.Tensor:
    offsets = torch.arange(_WINDOW, dtype=torch.float32, device=device) - _WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    return weights / weights.sum()
