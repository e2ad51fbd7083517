"""The perceptual distance against the published formula, written out apart."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from components.evaluation.tokenizer import FeatureDistance
from components.lib.cosmos.model_folder import save_model_folder

# torchvision's numbering: convolutions of VGG16 up to relu5_3, a pool after each group.
GROUPS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
WIDTHS = (64, 128, 256, 512, 512)
WEIGHTS = (1 / 2.6, 1 / 4.8, 1 / 3.7, 1 / 5.6, 10 / 1.5)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    state, channels = {}, 3
    for numbers, width in zip(GROUPS, WIDTHS, strict=True):
        for number in numbers:
            scale = (2 / (9 * channels)) ** 0.5
            shape = (width, channels, 3, 3)
            state[f"features.{number}.weight"] = scale * torch.randn(shape, generator=generator)
            state[f"features.{number}.bias"] = torch.zeros(width)
            channels = width
    return state


@pytest.fixture(scope="module")
def distance(
    weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> FeatureDistance:
    folder = tmp_path_factory.mktemp("vgg")
    save_model_folder(folder, "vgg16", "vgg16", {}, weights)
    return FeatureDistance(folder, "cpu")


def features(frames: torch.Tensor, weights: dict[str, torch.Tensor]) -> Iterator[torch.Tensor]:
    """Activations relu1_2, 2_2, 3_3, 4_3, 5_3 of frames in [0, 1]."""
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in (SHIFT, SCALE))
    x = (2 * frames - 1 - shift) / scale
    for place, numbers in enumerate(GROUPS):
        x = F.max_pool2d(x, 2) if place else x
        for number in numbers:
            x = F.relu(F.conv2d(x, weights[f"features.{number}.weight"], padding=1))
        yield x


def test_is_the_published_formula(
    distance: FeatureDistance, weights: dict[str, torch.Tensor]
) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(2, 3, 32, 48, generator=generator)
    y = (x + 0.1 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    pairs = zip(features(x, weights), features(y, weights), WEIGHTS, strict=True)
    wanted = sum(weight * float((a - b).abs().mean()) for a, b, weight in pairs)
    assert distance(x, y) == pytest.approx(wanted, rel=1e-4)
    assert distance(x, x) == 0


def test_grows_with_the_damage(distance: FeatureDistance) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(1, 3, 32, 32, generator=generator)
    noise = torch.randn(x.shape, generator=generator)
    found = [distance(x, (x + level * noise).clamp(0, 1)) for level in (0.01, 0.05, 0.2)]
    assert found == sorted(found) and found[0] < 0.5 * found[2]
