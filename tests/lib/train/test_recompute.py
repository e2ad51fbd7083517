"""The recompute plan uses the memory there is and never more."""

from hypothesis import given
from hypothesis import strategies as st

from components.lib.train.recompute import LADDER, USABLE, kept, plan_recompute, working

GIB = 2.0**30
UNIT = 56_320 * 4096 * 2  # one activation of the 7B model at 121 x 704 x 1280


@given(st.integers(1, 40), st.floats(0, 200), st.sampled_from([1, 2, 8]))
def test_kept_activations_fit(blocks: int, free_gib: float, ranks: int) -> None:
    unit = UNIT / ranks
    plan = plan_recompute(blocks, unit, free_gib * GIB, ranks)
    assert len(plan) == blocks
    if plan != ["full"] * blocks:
        needed = sum(kept(kind, ranks) for kind in plan) + working(ranks)
        assert needed * unit <= free_gib * GIB * USABLE


@given(st.integers(1, 40), st.floats(0, 100), st.floats(0, 100))
def test_more_memory_never_means_more_recomputation(blocks: int, less: float, more: float) -> None:
    low, high = sorted((less, more))
    ranks = [
        sum(LADDER.index(kind) for kind in plan_recompute(blocks, UNIT, free * GIB))
        for free in (low, high)
    ]
    assert ranks[0] <= ranks[1]


def test_choices_on_an_h100() -> None:
    # free memory after the state of 4 and of 8 layers with AdamW, and of 28 frozen bf16 layers
    assert plan_recompute(4, UNIT, 65.5 * GIB) == ["none"] * 4
    assert plan_recompute(8, UNIT, 54.0 * GIB) == ["light"] * 8
    assert plan_recompute(28, UNIT, 64.0 * GIB) == ["selective"] * 28


def test_too_little_memory_recomputes_everything() -> None:
    assert plan_recompute(3, UNIT, 0.0) == ["full"] * 3
