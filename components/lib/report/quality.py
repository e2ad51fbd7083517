"""How close a reconstruction is to its original: PSNR, SSIM, MS-SSIM, temporal error, code use.

Clips are float tensors [T, 3, H, W] in [0, 1]. All metrics are computed per frame and averaged
over frames, as published tokenizer tables are. SSIM is the usual one (Gaussian window of 11 with
sigma 1.5, constants 0.01 and 0.03). Borders are left out as in the published metric and in
scikit-image; torchmetrics pads them, and its map without the border has the same mean.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from components.lib.contract import Frozen

PSNR_LIMIT = 100.0
WINDOW, SIGMA = 11, 1.5
MS_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def psnr(original: Tensor, other: Tensor) -> float:
    """Mean over frames of the peak signal-to-noise ratio in dB; equal frames count as 100 dB."""
    error = ((original.double() - other.double()) ** 2).flatten(1).mean(1)
    values = -10 * torch.log10(error.clamp_min(10 ** (-PSNR_LIMIT / 10)))
    return float(values.mean())


def ssim(original: Tensor, other: Tensor) -> float:
    """Mean over frames of the structural similarity, at most 1."""
    similarity, _ = _similarity(original, other)
    return float(similarity.mean())


def ms_ssim(original: Tensor, other: Tensor) -> float | None:
    """Mean over frames of multi-scale SSIM (five scales); None below 176 pixels a side."""
    if min(original.shape[-2:]) < (WINDOW * 2 ** (len(MS_WEIGHTS) - 1)):
        return None
    first, second = original.float(), other.float()
    product = torch.ones(len(first), dtype=torch.float64)
    for level, weight in enumerate(MS_WEIGHTS):
        similarity, contrast = _similarity(first, second)
        last = level == len(MS_WEIGHTS) - 1
        value = (similarity if last else contrast).clamp_min(0)
        product = product * value.cpu() ** weight
        first, second = F.avg_pool2d(first, 2), F.avg_pool2d(second, 2)
    return float(product.mean())


def temporal_error(original: Tensor, other: Tensor) -> float:
    """Flicker: mean |change of the reconstruction - change of the original| from frame to frame,
    in 8-bit grey levels. 0 for a single frame."""
    if len(original) < 2:
        return 0.0
    wanted = original[1:].float() - original[:-1].float()
    motion = other[1:].float() - other[:-1].float()
    return 255 * float((wanted - motion).abs().mean())


def _similarity(original: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM and its contrast-structure part, fp64 [T] (means over channels and positions)."""
    window = _window(original.device)
    similarities, contrasts = [], []
    for frame in range(len(original)):
        x = original[frame : frame + 1].double()
        y = other[frame : frame + 1].double()
        moments = _blur(torch.cat([x, y, x * x, y * y, x * y]), window)
        mean_x, mean_y, xx, yy, xy = moments
        variance_x, variance_y = xx - mean_x**2, yy - mean_y**2
        covariance = xy - mean_x * mean_y
        c1, c2 = 0.01**2, 0.03**2
        contrast = (2 * covariance + c2) / (variance_x + variance_y + c2)
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        similarities.append((luminance * contrast).mean())
        contrasts.append(contrast.mean())
    return torch.stack(similarities), torch.stack(contrasts)


def _window(device: torch.device) -> Tensor:
    at = torch.arange(WINDOW, dtype=torch.float64, device=device) - WINDOW // 2
    weights = torch.exp(-0.5 * (at / SIGMA) ** 2)
    return weights / weights.sum()


def _blur(x: Tensor, window: Tensor) -> Tensor:
    """Separable filter without padding: [..., H, W] -> [..., H-10, W-10].

    A sum of eleven shifted pictures: in double precision several times faster than a convolution
    with one channel.
    """
    weights = window.tolist()
    for dim in (-2, -1):
        size = x.shape[dim] - WINDOW + 1
        total = x.narrow(dim, 0, size) * weights[0]
        for shift in range(1, WINDOW):
            total.add_(x.narrow(dim, shift, size), alpha=weights[shift])
        x = total
    return x


class CodeUse(Frozen):
    """How a discrete tokenizer uses its codes. ``entropy`` in bits of ``log2(codes)`` possible."""

    codes: int
    used: int
    entropy: float
    positions: int

    @property
    def usage(self) -> float:
        """Share of all codes that occurred."""
        return self.used / self.codes

    @property
    def perplexity(self) -> float:
        """The number of codes that, used equally, would have this entropy."""
        return 2**self.entropy


def code_use(indices: list[Tensor], codes: int) -> CodeUse:
    """Use of the codes 0 … codes-1 over integer tensors of any shape."""
    counts = torch.zeros(codes, dtype=torch.float64)
    for block in indices:
        counts += torch.bincount(block.flatten().cpu().long(), minlength=codes)
    total = float(counts.sum())
    share = counts[counts > 0] / max(total, 1.0)
    entropy = -float((share * torch.log2(share)).sum()) if total else 0.0
    return CodeUse(
        codes=codes, used=int((counts > 0).sum()), entropy=entropy + 0.0, positions=int(total)
    )


def gaussian_frechet(first: Tensor, second: Tensor) -> float:
    """Frechet distance of the Gaussians fitted to two sets of features [N, D] and [M, D]."""
    mean = (first.double().mean(0) - second.double().mean(0)).pow(2).sum()
    one, two = _covariance(first), _covariance(second)
    # trace sqrt(AB) for symmetric A, B from the eigenvalues of sqrt(A) B sqrt(A).
    values, vectors = torch.linalg.eigh(one)
    root = vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ two @ root).clamp_min(0).sqrt().sum()
    return max(0.0, float(mean + one.trace() + two.trace() - 2 * cross))


def _covariance(features: Tensor) -> Tensor:
    centred = features.double() - features.double().mean(0)
    return centred.T @ centred / max(len(features) - 1, 1)


def bits_per_pixel(height: int, width: int, frames: int, stored_bits: float) -> float:
    """Bits that the compressed form spends on one pixel of one frame."""
    return stored_bits / (height * width * frames) if frames else math.nan
