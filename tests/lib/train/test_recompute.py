"""The recompute plan uses the memory there is and never more."""

from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from components.lib.train.recompute import LADDER, Room, kept, plan_recompute, plan_waiting, working
from components.lib.train.waiting import back_after, gone_before

GIB = 2.0**30
UNIT = 56_320 * 4096 * 2  # one activation of the 7B model at 121 x 704 x 1280


@given(
    st.integers(1, 40),
    st.floats(0, 200),
    st.sampled_from([1, 2, 8]),
    st.floats(0, 3),
    st.floats(0, 3),
    st.floats(0.5, 1),
)
def test_activations_gradients_and_waiting_state_fit_at_every_block(
    blocks: int, free_gib: float, ranks: int, gradient_gib: float, state_gib: float, usable: float
) -> None:
    unit = UNIT / ranks
    room = Room(blocks, unit, free_gib * GIB, ranks, usable, gradient_gib * GIB)
    plan = plan_recompute(room, state_gib * GIB)
    assert len(plan) == blocks
    if plan == ["full"] * blocks:
        return
    budget = (free_gib * usable + blocks * state_gib) * GIB * (1 + 1e-9) - working(ranks) * unit
    for block in range(blocks):  # forward: what is kept so far, and state that is not gone yet
        activations = sum(kept(kind, ranks) for kind in plan[: block + 1]) * unit
        state = (blocks - gone_before(block, blocks)) * state_gib * GIB
        assert activations + state <= budget
    for done in range(blocks + 1):  # backward: blocks whose gradients are there, last first
        activations = sum(kept(kind, ranks) for kind in plan[: blocks - done]) * unit
        gradients = done * gradient_gib * GIB
        assert activations + gradients + back_after(done, blocks) * state_gib * GIB <= budget


@given(st.integers(1, 40), st.floats(0, 100), st.floats(0, 100))
def test_more_memory_never_means_more_recomputation(blocks: int, less: float, more: float) -> None:
    low, high = sorted((less, more))
    ranks = [
        sum(LADDER.index(kind) for kind in plan_recompute(Room(blocks, UNIT, free * GIB)))
        for free in (low, high)
    ]
    assert ranks[0] <= ranks[1]


def test_choices_by_hand() -> None:
    # Free memory after weights and moments in GiB, of which 0.94 (0.80 for none), in units of 0.43:
    # an H100 with 4 and 8 layers of 7B, and with 28 frozen ones; an H200 with half of all layers.
    assert plan_recompute(Room(4, UNIT, 65.5 * GIB)) == ["none"] * 4  # 122 - 8 > 4 x 23.6
    assert plan_recompute(Room(8, UNIT, 54.0 * GIB)) == ["light"] * 8  # 118 - 8 > 8 x 10.2
    frozen = plan_recompute(Room(28, UNIT, 64.0 * GIB))  # 140 - 8 - 62 = 70 = 8 x 8 + 6
    assert frozen == ["selective"] * 20 + ["light"] * 8
    half = plan_recompute(Room(28, UNIT, 98.3 * GIB))  # 215 - 8 - 62 = 145 = 18 x 8 + 1
    assert half == ["selective"] * 10 + ["light"] * 18


def test_state_waits_where_matrix_products_would_be_repeated() -> None:
    def choose(wish: Literal["auto", "gpu", "host"], free: float) -> tuple[list[str], bool]:
        room = Room(28, UNIT, free * GIB, gradient_bytes=0.48 * GIB)
        plan, waits = plan_waiting(wish, room, state_bytes=0.95 * GIB)
        return list(plan), waits

    # Half of 7B on an H200: 0.94 x 97.9 + 28 x 0.95 GiB are 276 units; 276 - 8 - 62 = 25 x 8 + 6.
    more = ["selective"] * 3 + ["light"] * 25
    assert choose("auto", 97.9) == choose("host", 97.9) == (more, True)
    assert choose("gpu", 97.9) == (["selective"] * 10 + ["light"] * 18, False)
    # With all products kept already the rest is not worth the copies, unless asked for.
    plenty, waits = choose("auto", 140.0)
    assert plenty == ["light"] * 28
    assert not waits
    assert choose("host", 140.0)[1]
    # Nothing to gain where nothing fits.
    assert choose("auto", 0.0) == (["full"] * 28, False)


def test_too_little_memory_recomputes_everything() -> None:
    assert plan_recompute(Room(3, UNIT, 0.0)) == ["full"] * 3
