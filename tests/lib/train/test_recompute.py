"""The recompute plan uses the memory there is and never more."""

from hypothesis import given
from hypothesis import strategies as st

from components.lib.train.recompute import LADDER, kept, plan_recompute, working

GIB = 2.0**30
UNIT = 56_320 * 4096 * 2  # one activation of the 7B model at 121 x 704 x 1280


@given(
    st.integers(1, 40),
    st.floats(0, 200),
    st.sampled_from([1, 2, 8]),
    st.floats(0, 3),
    st.floats(0.5, 1),
)
def test_activations_and_gradients_fit_at_every_block(
    blocks: int, free_gib: float, ranks: int, gradient_gib: float, usable: float
) -> None:
    unit = UNIT / ranks
    plan = plan_recompute(
        blocks, unit, free_gib * GIB, ranks, usable=usable, gradient_bytes=gradient_gib * GIB
    )
    assert len(plan) == blocks
    if plan != ["full"] * blocks:
        for done in range(blocks + 1):  # blocks whose gradients are there already, last first
            activations = sum(kept(kind, ranks) for kind in plan[: blocks - done]) * unit
            held = activations + done * gradient_gib * GIB + working(ranks) * unit
            assert held <= free_gib * GIB * usable * (1 + 1e-9)


@given(st.integers(1, 40), st.floats(0, 100), st.floats(0, 100))
def test_more_memory_never_means_more_recomputation(blocks: int, less: float, more: float) -> None:
    low, high = sorted((less, more))
    ranks = [
        sum(LADDER.index(kind) for kind in plan_recompute(blocks, UNIT, free * GIB))
        for free in (low, high)
    ]
    assert ranks[0] <= ranks[1]


def test_choices_by_hand() -> None:
    # Free memory after weights and moments in GiB, of which 0.94 (0.80 for none), in units of 0.43:
    # an H100 with 4 and 8 layers of 7B, and with 28 frozen ones; an H200 with half of all layers.
    assert plan_recompute(4, UNIT, 65.5 * GIB) == ["none"] * 4  # 122 - 8 > 4 x 23.6
    assert plan_recompute(8, UNIT, 54.0 * GIB) == ["light"] * 8  # 118 - 8 > 8 x 10.2
    frozen = plan_recompute(28, UNIT, 64.0 * GIB)  # 140 - 8 - 62 = 70 = 8 x 8 + 6
    assert frozen == ["selective"] * 20 + ["light"] * 8
    half = plan_recompute(28, UNIT, 98.3 * GIB)  # 215 - 8 - 62 = 145 = 18 x 8 + 1
    assert half == ["selective"] * 10 + ["light"] * 18


def test_too_little_memory_recomputes_everything() -> None:
    assert plan_recompute(3, UNIT, 0.0) == ["full"] * 3
