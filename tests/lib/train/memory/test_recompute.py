"""The recompute plan uses the memory there is and never more."""

from hypothesis import given
from hypothesis import strategies as st

from components.lib.cosmos.dit.block import Checkpointing
from components.lib.train.memory.optimizer_offload import back_after, gone_before
from components.lib.train.memory.recompute import (
    LADDER,
    MemoryBudget,
    MemoryPlan,
    keep_products,
    kept,
    make_plan,
    plan_recompute,
    repeats_products,
    working,
)
from components.lib.train.settings.config import Placement

GIB = 2.0**30
UNIT = 56_320 * 4096 * 2  # one activation of the 7B model at 121 x 704 x 1280


@given(
    st.integers(1, 40),
    st.floats(0, 200),
    st.sampled_from([1, 2, 8]),
    st.floats(0, 3),
    st.floats(0, 3),
    st.floats(0.5, 1),
    st.integers(0, 40),
)
def test_what_is_held_fits_at_every_block(
    blocks: int,
    free_gib: float,
    ranks: int,
    gradient_gib: float,
    state_gib: float,
    usable: float,
    away: int,
) -> None:
    """Activations, gradients, waiting state, and activations that wait on the host."""
    unit = UNIT / ranks
    room = MemoryBudget(blocks, unit, free_gib * GIB, ranks, usable, gradient_gib * GIB, 4 * unit)
    plan = plan_recompute(room, state_gib * GIB, away)
    assert len(plan) == blocks
    if plan == ["full"] * blocks:
        return
    budget = (free_gib + blocks * state_gib) * usable * GIB * (1 + 1e-9) - working(ranks) * unit
    gone = keep_products(plan)[:away]

    def activations(at_work: int) -> float:
        """Of the blocks up to that one, it and the one before whole."""
        return sum(
            kept(kind, ranks) - 4 * (block in gone and block < at_work - 1)
            for block, kind in enumerate(plan[: at_work + 1])
        )

    for block in range(blocks):  # forward: what is kept so far, and state that is not gone yet
        state = (blocks - gone_before(block, blocks)) * state_gib * GIB
        assert activations(block) * unit + state <= budget
    for done in range(blocks + 1):  # backward: blocks whose gradients are there, last first
        gradients = done * gradient_gib * GIB
        state = back_after(done, blocks) * state_gib * GIB
        assert activations(blocks - 1 - done) * unit + gradients + state <= budget


@given(st.integers(1, 40), st.floats(0, 100), st.floats(0, 100))
def test_more_memory_never_means_more_recomputation(blocks: int, less: float, more: float) -> None:
    low, high = sorted((less, more))
    ranks = [
        sum(LADDER.index(kind) for kind in plan_recompute(MemoryBudget(blocks, UNIT, free * GIB)))
        for free in (low, high)
    ]
    assert ranks[0] <= ranks[1]


def test_choices_by_hand() -> None:
    # Free memory after weights and moments in GiB, of which 0.94 (0.80 for none), in units of 0.43:
    # an H100 with 4 and 8 layers of 7B, and with 28 frozen ones; an H200 with half of all layers.
    assert plan_recompute(MemoryBudget(4, UNIT, 65.5 * GIB)) == ["none"] * 4  # 122 - 8 > 4 x 23.6
    assert plan_recompute(MemoryBudget(8, UNIT, 54.0 * GIB)) == ["light"] * 8  # 118 - 8 > 8 x 12.2
    frozen = plan_recompute(MemoryBudget(28, UNIT, 64.0 * GIB))  # 140 - 8 - 62 = 70 = 7 x 10
    assert frozen == ["selective"] * 21 + ["light"] * 7
    half = plan_recompute(MemoryBudget(28, UNIT, 98.3 * GIB))  # 215 - 8 - 62 = 145 = 14 x 10 + 5
    assert half == ["selective"] * 14 + ["light"] * 14


def test_state_and_activations_wait_where_matrix_products_would_be_repeated() -> None:
    def choose(
        free: float, state: Placement = "auto", wide: Placement = "auto", most: int = 26
    ) -> MemoryPlan:
        room = MemoryBudget(
            28,
            UNIT,
            free * GIB,
            gradient_bytes=0.48 * GIB,
            activation_bytes=4.0 * UNIT,
            most_offloaded=most,
        )
        return make_plan(room, 0.95 * GIB, state, wide)

    def kinds(selective: int) -> list[Checkpointing]:
        return ["selective" if block < selective else "light" for block in range(28)]

    # Half of 7B on an H200: 0.94 x 97.9 GiB are 214 units; 214 - 8 - 62 = 14 x 10 + 4.
    staying = choose(97.9, "gpu", "gpu")
    assert staying == MemoryPlan(kinds(14), False, [])
    # 0.94 x 28 x 0.95 GiB more are 58 units: 272 - 8 - 62 = 20 x 10 + 2.
    assert choose(97.9, wide="gpu") == MemoryPlan(kinds(8), True, [])
    # All products: 28 x 12.2 + 8 = 349.6, of 272.3: 4 units of 20 blocks.
    assert choose(97.9) == MemoryPlan(["light"] * 28, True, list(range(20)))
    # Less room on the host: 272.3 + 4 x 6 - 8 - 62 = 22 x 10 + 7, in the last blocks.
    assert choose(97.9, most=6) == MemoryPlan(kinds(6), True, list(range(6, 12)))
    # With all products kept already the rest is not worth the copies, unless asked for.
    assert choose(165.0) == MemoryPlan(["light"] * 28, False, [])
    assert choose(165.0, "host", "host")[1:] == (True, list(range(28)))
    # Nothing to gain where nothing fits.
    assert choose(0.0) == MemoryPlan(["full"] * 28, False, [])


@given(st.floats(0, 200), st.integers(0, 26))
def test_no_more_activations_wait_than_it_takes(free: float, most: int) -> None:
    room = MemoryBudget(28, UNIT, free * GIB, activation_bytes=4.0 * UNIT, most_offloaded=most)
    plan = make_plan(room, 0.0, "auto", "auto")
    assert len(plan.offloaded) <= most
    if plan.offloaded and not repeats_products(plan.kinds):
        assert repeats_products(plan_recompute(room, 0.0, len(plan.offloaded) - 1))


def test_too_little_memory_recomputes_everything() -> None:
    assert plan_recompute(MemoryBudget(3, UNIT, 0.0)) == ["full"] * 3
