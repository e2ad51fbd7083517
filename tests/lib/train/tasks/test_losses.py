"""The perceptual loss and the guard, against independent computations."""

from __future__ import annotations

import math

import pytest
import torch

from components.lib.cosmos.perceptual import (
    TAP_WEIGHTS,
    VGG16Features,
    feature_terms,
    flow_term,
    scheduled,
)
from components.lib.train.loss_guard import WARM_UP, LossGuard, TrainingDiverged


@pytest.fixture(scope="module")
def videos() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    one = torch.rand(2, 3, 3, 24, 32, generator=generator) * 2 - 1
    return one, (one + 0.2 * torch.randn(one.shape, generator=generator)).clamp(-1, 1)


def test_vgg16_has_torchvisions_names_and_size() -> None:
    state = VGG16Features().state_dict()
    numbers = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    assert list(state) == [f"features.{n}.{kind}" for n in numbers for kind in ("weight", "bias")]
    assert sum(value.numel() for value in state.values()) == 14_714_688


def test_perceptual_and_gram_terms_follow_the_formulas(
    videos: tuple[torch.Tensor, torch.Tensor],
) -> None:
    torch.manual_seed(1)
    vgg = VGG16Features()
    one, other = (video[:1, :, :, :16, :16] for video in videos)
    perceptual, gram = feature_terms(vgg, one, other, gram=True)
    frames = [video[0].transpose(0, 1) for video in (one, other)]
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    taps = (3, 8, 15, 22, 29)
    found_perceptual = found_gram = 0.0
    features: list[list[torch.Tensor]] = []
    for video in frames:
        x, kept = (video - shift) / scale, []
        for number, layer in enumerate(vgg.features):
            x = layer(x)
            if number in taps:
                kept.append(x)
        features.append(kept)
    for weight, a, b in zip(TAP_WEIGHTS, *features, strict=True):
        found_perceptual += weight * (a - b).abs().mean().item()
        matrices = [torch.einsum("tchw,tdhw->cd", f, f) / f[:, 0].numel() for f in (a, b)]
        found_gram += weight * (matrices[0] - matrices[1]).pow(2).mean().item()
    assert perceptual.item() == pytest.approx(found_perceptual, rel=1e-4)
    assert gram.item() == pytest.approx(found_gram, rel=1e-4)


def test_the_flow_term_compares_flows_at_half_size(
    videos: tuple[torch.Tensor, torch.Tensor],
) -> None:
    sizes = []

    def brightness_change(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(first.shape))
        return (second - first).mean((1, 2, 3)).view(-1, 1, 1, 1).expand(-1, 2, *first.shape[2:])

    one = videos[0]
    brighter = one + torch.linspace(0, 0.5, 3).view(1, 1, 3, 1, 1)
    # Each frame is 0.25 brighter than the one before; doubled, in both directions.
    assert flow_term(brightness_change, one, brighter).item() == pytest.approx(0.5, rel=1e-4)
    assert set(sizes) == {(4, 3, 12, 16)}
    assert flow_term(brightness_change, one, one).item() == 0
    assert flow_term(brightness_change, one[:, :, :1], one[:, :, :1]).item() == 0


def test_weights_change_at_the_global_step() -> None:
    assert scheduled((0.1, 0.073), 500_000, 499_999) == 0.1
    assert scheduled((0.1, 0.073), 500_000, 500_000) == 0.073


def test_the_guard_stops_what_is_not_a_number_and_names_the_parameter() -> None:
    layer = torch.nn.Linear(2, 2)
    layer(torch.ones(1, 2)).sum().backward()
    assert layer.weight.grad is not None
    layer.weight.grad[0, 0] = math.nan
    with pytest.raises(TrainingDiverged, match=r"Step 7.*nan.*weight"):
        LossGuard(20).check(7, math.nan, math.nan, 1e-3, dict(layer.named_parameters()))


def test_the_guard_stops_an_exploding_loss_only_after_warming_up() -> None:
    guard = LossGuard(10)
    guard.check(0, 1000.0, 1.0, 1e-3, {})
    guard = LossGuard(10)
    for step in range(WARM_UP):
        guard.check(step, 1.0 + 0.1 * (step % 2), 1.0, 1e-3, {})
    restored = LossGuard(10)
    restored.restore(guard.state())
    for judge in (guard, restored):
        with pytest.raises(TrainingDiverged, match="explode_factor"):
            judge.check(WARM_UP, 50.0, 1.0, 1e-3, {})
