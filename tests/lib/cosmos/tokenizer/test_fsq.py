"""The quantiser as a map: onto a grid, and back and forth between codes and indices."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.lib.cosmos.tokenizer.fsq import FSQ


@given(
    levels=st.lists(st.integers(2, 9), min_size=1, max_size=5).map(tuple),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_every_index_is_one_code_and_back(levels: tuple[int, ...], seed: int) -> None:
    quantiser = FSQ(levels)
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(quantiser.codes, (2, 3, 4), generator=generator)
    codes = quantiser.codes_of(indices)
    assert codes.shape == (2, len(levels), 3, 4)
    assert torch.equal(quantiser.indices(codes), indices)


def test_index_counts_the_first_channel_fastest() -> None:
    quantiser = FSQ((3, 4, 2))
    digits = torch.tensor(
        [(a, b, c) for c, b, a in itertools.product(range(2), range(4), range(3))]
    )
    halves = torch.tensor([1, 2, 1])
    codes = (digits - halves) / halves
    assert quantiser.indices(codes).tolist() == list(range(24))


@pytest.mark.parametrize("level", range(2, 10))
def test_each_channel_takes_exactly_its_levels(level: int) -> None:
    z = torch.linspace(-30, 30, 20001)[:, None]
    codes = FSQ((level,)).quantise(z)
    values = codes.unique()
    half = level // 2
    wanted = (torch.arange(level) - half) / half
    assert torch.allclose(values, wanted)
    assert bool((codes[1:] >= codes[:-1]).all())  # monotone


def test_zero_is_the_middle() -> None:
    assert FSQ((8, 5)).quantise(torch.zeros(1, 2)).tolist() == [[0.0, 0.0]]


def test_bf16_latents_give_codes_of_the_same_grid() -> None:
    """The published levels are exact in bf16, so nothing is lost between codes and indices."""
    quantiser = FSQ((8, 8, 8, 5, 5, 5))
    z = torch.randn(1, 6, 500, generator=torch.Generator().manual_seed(0)).bfloat16() * 3
    codes = quantiser.quantise(z)
    assert codes.dtype == torch.bfloat16
    assert torch.equal(codes.float(), quantiser.quantise(z.float()))
    assert torch.equal(quantiser.codes_of(quantiser.indices(codes), torch.bfloat16), codes)


def test_gradient_is_that_of_the_bounded_value() -> None:
    """Straight through: as if rounding were not there; checked against finite differences."""
    quantiser = FSQ((8, 5))
    z = torch.tensor([[0.3, -0.7]], requires_grad=True)
    quantiser.quantise(z).sum().backward()
    assert z.grad is not None

    def bounded(value: float, level: int) -> float:
        half = (level - 1) * 1.001 / 2
        offset = 0.5 if level % 2 == 0 else 0.0
        shift = torch.tensor(offset / half, dtype=torch.float64).atanh()
        x = torch.tensor(value, dtype=torch.float64) + shift
        return float((x.tanh() * half - offset) / (level // 2))

    step = 1e-4
    for column, (value, level) in enumerate([(0.3, 8), (-0.7, 5)]):
        slope = (bounded(value + step, level) - bounded(value - step, level)) / (2 * step)
        assert float(z.grad[0, column]) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("index", [-1, 24])
def test_indices_outside_are_refused(index: int) -> None:
    with pytest.raises(ValueError, match="0 … 23"):
        FSQ((3, 4, 2)).codes_of(torch.tensor([[index]]))


def test_a_channel_needs_two_levels() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        FSQ((8, 1))
