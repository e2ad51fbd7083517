"""Picture metrics against torchmetrics and scikit-image on the same pictures, to 1e-4."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import linalg
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from components.lib.report import quality

FRAMES = 3


def pictures(
    seed: int, height: int = 192, width: int = 208, noise: float = 0.1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth random pictures and a noisy copy, [T, 3, H, W] in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(FRAMES, 3, 12, 13, generator=generator)
    x = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    y = (x + noise * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    return x, y


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.5])
def test_psnr_equals_scikit_image(noise: float) -> None:
    x, y = pictures(0, noise=noise)
    wanted = np.mean(
        [
            peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=1)
            for a, b in zip(x.double(), y.double(), strict=True)
        ]
    )
    assert quality.psnr(x, y) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.5])
def test_ssim_equals_scikit_image_and_torchmetrics(noise: float) -> None:
    x, y = pictures(1, noise=noise)
    image = np.mean(
        [
            structural_similarity(
                a.permute(1, 2, 0).numpy(), b.permute(1, 2, 0).numpy(), channel_axis=2,
                data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
            )
            for a, b in zip(x.double(), y.double(), strict=True)
        ]
    )  # fmt: skip
    found = quality.ssim(x, y)
    assert found == pytest.approx(image, abs=1e-4)
    assert found == pytest.approx(float(inner(x, y)), abs=1e-4)


def inner(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """torchmetrics' SSIM map without the border, where it pads (the published metric does not)."""
    _, full = structural_similarity_index_measure(
        y.double(), x.double(), data_range=1.0, sigma=1.5, kernel_size=11, return_full_image=True
    )
    return full[..., 5:-5, 5:-5].mean(dim=(1, 2, 3)).mean()


def test_ms_ssim_equals_torchmetrics_scale_by_scale() -> None:
    x, y = pictures(2, noise=0.3)
    x, y = x[:1], y[:1]
    wanted = 1.0
    a, b = x.double(), y.double()
    for weight in (0.0448, 0.2856, 0.3001, 0.2363):
        _, contrast = structural_similarity_index_measure(
            b, a, data_range=1.0, sigma=1.5, kernel_size=11, return_contrast_sensitivity=True
        )
        wanted *= float(contrast) ** weight
        a, b = (torch.nn.functional.avg_pool2d(value, 2) for value in (a, b))
    wanted *= float(inner(a, b)) ** 0.1333
    assert quality.ms_ssim(x, y) == pytest.approx(wanted, abs=1e-4)
    small, other = pictures(2, height=64, width=64)
    assert quality.ms_ssim(small, other) is None


def test_equal_pictures_are_perfect_and_finite() -> None:
    x, _ = pictures(3)
    assert quality.psnr(x, x) == 100
    assert quality.ssim(x, x) == pytest.approx(1)
    assert quality.temporal_error(x, x) == 0


def test_temporal_error_sees_flicker_and_not_a_constant_fault() -> None:
    x, _ = pictures(4)
    assert quality.temporal_error(x * 0.5, x * 0.5 + 0.25) == pytest.approx(0, abs=1e-4)
    flicker = x * 0.5
    flicker[1] += 0.1
    assert quality.temporal_error(x * 0.5, flicker) == pytest.approx(25.5, rel=1e-4)


def test_code_use_by_hand() -> None:
    use = quality.code_use([torch.tensor([[0, 0], [1, 1]]), torch.tensor([3, 3, 2, 2])], 8)
    assert (use.used, use.positions, use.usage) == (4, 8, 0.5)
    assert use.entropy == pytest.approx(2) and use.perplexity == pytest.approx(4)
    one = quality.code_use([torch.zeros(5, dtype=torch.int64)], 64)
    assert (one.entropy, one.perplexity) == (0, 1)


def test_frechet_distance_equals_scipy() -> None:
    generator = torch.Generator().manual_seed(5)
    mix = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    a = torch.randn(300, 6, generator=generator, dtype=torch.float64)
    b = torch.randn(200, 6, generator=generator, dtype=torch.float64) @ mix + 0.3
    one, two = np.cov(a.numpy().T), np.cov(b.numpy().T)
    root = linalg.sqrtm(one @ two).real
    wanted = float(((a.mean(0) - b.mean(0)) ** 2).sum()) + np.trace(one + two - 2 * root)
    assert quality.gaussian_frechet(a, b) == pytest.approx(wanted, rel=1e-6)
    assert quality.gaussian_frechet(a, a) == pytest.approx(0, abs=1e-8)
    assert math.isfinite(quality.gaussian_frechet(a[:2], b[:2]))
