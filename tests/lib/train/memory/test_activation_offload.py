"""The widest activation of a block leaves and comes back, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from components.lib.contract import UserError
from components.lib.train.memory.activation_offload import OffloadedActivation
from components.lib.train.memory.optimizer_offload import leaving_at
from components.lib.train.tasks.diffusion import DiffusionTask
from tests.lib.train.memory.test_optimizer_offload import LAYERS, Run

ON_THE_HOST: dict[str, Any] = {"recompute": "light", "compile": True, "activations": "host"}


def on_host(run: Run) -> list[bool]:
    """For each block whether its activation is on the host alone."""
    task = run.engine.task
    assert isinstance(task, DiffusionTask)
    if task.activation_offload is None:
        return []
    activations = task.activation_offload._activations
    return [
        activations[block]._template is not None and activations[block]._on_device is None
        for block in range(LAYERS)
    ]


@pytest.mark.parametrize("more", [{}, {"accumulate_grad_batches": 2, "optimizer_state": "host"}])
def test_training_is_the_same_bit_for_bit(more: dict[str, Any]) -> None:
    torch._dynamo.reset()
    results = []
    for place in ("gpu", "host"):
        with Run(**{**ON_THE_HOST, "activations": place, **more}) as run:
            results.append((run.steps(), run.state()))
            # whether every block's activation went through the host, or none
            assert on_host(run) == [True] * LAYERS * (place == "host")
    (losses, state), (other_losses, other_state) = results
    assert losses == other_losses
    for name, value in state.items():
        assert torch.equal(value, other_state[name]), name


def test_it_is_on_the_host_while_other_blocks_are_at_work() -> None:
    torch._dynamo.reset()
    with Run(**ON_THE_HOST) as run:
        run.steps(1)
        seen: dict[str, list[list[int]]] = {"forward": [], "backward": []}

        def here() -> list[int]:
            return [block for block, gone in enumerate(on_host(run)) if not gone]

        def look(block: nn.Module, _: object, output: torch.Tensor) -> None:
            seen["forward"].append(here())
            output.register_hook(lambda _: seen["backward"].append(here()))

        for block in run.engine.task.units():
            block.register_forward_hook(look)
        run.steps(1)
    # The block that has just run and the one before it, whose copy is on its way.
    assert seen["forward"] == [[0], *([block - 1, block] for block in range(1, LAYERS))]
    # The block whose turn it is and the next, which comes back meanwhile.
    assert seen["backward"] == [
        *([block - 1, block] for block in reversed(range(1, LAYERS))),
        [0],
    ]


def test_a_step_that_fails_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    results = []
    for fails in (False, True):
        with Run(**ON_THE_HOST) as run, monkeypatch.context() as patch:
            losses = run.steps(1)
            if fails:
                patch.setattr(torch.Tensor, "backward", _refuse)
                with pytest.raises(ValueError, match="no backward"):
                    run.engine.train_step()
                patch.undo()
                run.engine.stop_data()
                run.engine.start_data()  # the same batch again
            results.append(losses + run.steps(2))
    assert results[0] == results[1]


def _refuse(*_: object) -> None:
    raise ValueError("no backward pass")


def test_values_come_back_whatever_their_size() -> None:
    activations = OffloadedActivation(torch.device("cpu"), None)
    activations.prepare(12, torch.float32)
    for shape in [(3, 4), (2, 4)]:  # a smaller clip uses the beginning of the buffer
        value = torch.randn(shape)
        expected = value.clone()
        activations.offload(value)
        activations.release()
        value.zero_()
        assert torch.equal(activations.fetch(), expected)
    activations.offload(expected)
    assert activations.fetch() is expected, "it never went, so nothing is copied back"


def stalled(
    begun: Callable[[int], int], layers: int, sizes: tuple[float, float], block: float
) -> float:
    """Seconds that a forward pass waits for a bus of 48 GB/s, one copy after another.

    ``begun``: parts of the state whose copies have begun at each block; ``sizes`` in GB of such a
    part and of an activation; ``block``: seconds of a block. All but the last 8 activations leave.
    """
    now = free = waited = 0.0
    there: list[float] = []
    parts = 0
    for number in range(layers):
        free = max(free, now) + (begun(number) - parts) * sizes[0] / 48
        parts = begun(number)
        if number >= 2:
            wait = max(0.0, there[number - 2] - now)
            now, waited = now + wait, waited + wait
        now += block
        free = max(free, now) + sizes[1] / 48 * (number < layers - 8)
        there.append(free)
    return waited


@pytest.mark.parametrize(
    ("layers", "sizes", "block", "at_once"),
    # 7B on two GPUs, where 0.30 s were seen, and 20 layers of 14B on one.
    [(28, (1.02, 1.85), 0.145, 0.35), (20, (3.15, 2.31), 0.165, 1.03)],
    ids=["7B", "14B"],
)
def test_state_that_leaves_does_not_hold_up_activations(
    layers: int, sizes: tuple[float, float], block: float, at_once: float
) -> None:
    assert stalled(lambda _: layers, layers, sizes, block) == pytest.approx(at_once, rel=0.05)
    assert stalled(lambda n: leaving_at(n, layers), layers, sizes, block) == 0


def test_eager_blocks_refuse() -> None:
    with pytest.raises(UserError, match=r"trainer\.compile=true"), Run(activations="host"):
        pass
