"""The optimizer's state makes room while activations need it, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from components.lib.train.memory import optimizer_offload, plan
from components.lib.train.memory.host_copies import HostCopies
from components.lib.train.memory.optimizer_offload import (
    back_after,
    gone_before,
    host_bytes_left,
    leaving_at,
)
from components.lib.train.memory.recompute import free_after_state
from components.lib.train.parallel.layout import local_part, start_processes, stop_processes
from components.lib.train.settings.config import DiffusionTrainingConfig
from components.lib.train.tasks import diffusion
from tests.benchmarks.gpu.random_dit import GEOMETRIES, RandomTask, Shape, build

LAYERS = 8
LATENT: Shape = (16, 2, 8, 8)
LARGE = "blocks.block{}.blocks.2.block.layer1.weight"
SMALL = GEOMETRIES["small"].model_copy(update={"layers": LAYERS})


class Run:
    """An engine of a small DiT on this process's CPU."""

    def __init__(self, latent: Shape = LATENT, **trainer: Any) -> None:
        self.latent = latent
        self.config = DiffusionTrainingConfig.model_validate(
            {
                "model": {"preset": "tiny"},
                "trainer": {
                    "accelerator": "cpu",
                    "precision": "32-true",
                    "max_steps": 100,
                    **trainer,
                },
            }
        )

    def __enter__(self) -> Run:
        layout = start_processes(self.config.trainer, model_parallel=True)
        self.engine = build(self.config, SMALL, layout, self.latent)
        self.engine.start_data()
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.stop_data()
        stop_processes()

    def steps(self, count: int = 3) -> list[tuple[float, float]]:
        values = [self.engine.train_step() for _ in range(count)]
        return [(value["loss"], value["grad_norm"]) for value in values]

    def state(self) -> dict[str, torch.Tensor]:
        views = self.engine.tensors()
        self.engine.copies.wait()
        return {name: local_part(view).clone() for name, view in views.items()}

    def blocks_here(self) -> list[bool]:
        """For each block whether its moments have memory."""
        parameters = [self.engine.parameters[LARGE.format(number)] for number in range(LAYERS)]
        moments = [local_part(self.engine.optimizer.state[p]["exp_avg"]) for p in parameters]
        return [value.untyped_storage().nbytes() > 0 for value in moments]


@pytest.mark.parametrize("more", [{}, {"accumulate_grad_batches": 3, "ema_decay": 0.9}])
def test_training_is_the_same_bit_for_bit(more: dict[str, Any]) -> None:
    results = []
    for place in ("gpu", "host"):
        with Run(optimizer_state=place, **more) as run:
            results.append((run.steps(), run.state()))
            assert (run.engine.optimizer_offload is not None) == (place == "host")
    (losses, state), (other_losses, other_state) = results
    assert losses == other_losses
    assert state.keys() == other_state.keys()
    for name, value in state.items():
        assert torch.equal(value, other_state[name]), name


def test_state_is_away_between_the_passes_and_back_before_the_optimizer() -> None:
    with Run(optimizer_state="host") as run:
        run.steps(1)
        seen: dict[str, list[int]] = {"forward": [], "backward": []}

        def look(block: nn.Module, _: object, output: torch.Tensor) -> None:
            seen["forward"].append(sum(run.blocks_here()))
            output.register_hook(lambda _: seen["backward"].append(sum(run.blocks_here())))

        for block in run.engine.task.units():
            block.register_forward_hook(look)
        at_step: list[int] = []

        def apply() -> None:
            at_step.append(sum(run.blocks_here()))
            run.engine.optimizer.step()

        run.engine.train_step(apply)
    # By hand, of 8 blocks: two parts a block leave from block 3 on; after 4 blocks of the backward
    # pass two come back for each.
    assert seen["forward"] == [8, 8, 8, 6, 4, 2, 0, 0]
    assert seen["backward"] == [0, 0, 0, 0, 2, 4, 6, 8]
    assert at_step == [8]


@pytest.mark.parametrize(
    ("host_gib", "accumulate", "waits"), [(64, 1, True), (64, 3, True), (16, 1, False)]
)
def test_it_is_chosen_by_the_memory_there_is(
    host_gib: int, accumulate: int, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In activations of 2,048 tokens x 128 x 2 bytes = 0.5 MiB: attention outputs kept and one block
    # at work are 8 x 2.2 + 8 = 25.6, products kept in a block 10 more. A block's 184,384 weights
    # are 1.41, its moments 2.81. 0.94 x 60 = 56.4 are enough for 3 blocks; 56.4 + 8 x 2.81 for 5.
    monkeypatch.setattr(plan, "host_bytes_left", lambda: host_gib * 2.0**30)
    with Run((16, 2, 64, 64), recompute="auto", accumulate_grad_batches=accumulate) as run:
        model, unit = run.engine.task.model, 2048 * 128 * 2
        weights = sum(local_part(p).numel() for p in model.get_submodule("blocks").parameters())
        assert weights == LAYERS * 184_384
        held = 0 - free_after_state(model, 0.0, ema=False, accumulates=accumulate > 1)
        monkeypatch.setattr(diffusion, "device_bytes", lambda _: held + 60 * unit)
        plans = []
        for _ in range(2):
            run.steps(1)
            plans.append([getattr(block, "checkpointing", "") for block in run.engine.task.units()])
        assert plans[0] == plans[1]
        assert (run.engine.optimizer_offload is not None) == waits
        light = 5 if waits else 3
        assert plans[0] == ["selective"] * (LAYERS - light) + ["light"] * light


def test_the_plan_is_for_the_largest_clip_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch of a data set of several sizes may be a small one."""
    plans = []
    for latent, largest in [((16, 2, 64, 64), None), (LATENT, (16, 2, 64, 64)), (LATENT, None)]:
        with Run(latent, recompute="auto", optimizer_state="gpu") as run:
            task = run.engine.task
            assert isinstance(task, diffusion.DiffusionTask)
            task.largest = largest
            held = 0 - free_after_state(task.model, 0.0, ema=False)
            monkeypatch.setattr(diffusion, "device_bytes", lambda _, held=held: held + 2**25)
            run.steps(1)
            plans.append([getattr(block, "checkpointing", "") for block in task.units()])
    large, small_first, small = plans
    assert small_first == large != small == ["none"] * LAYERS


def test_pace_ends_in_time() -> None:
    for count in range(2, 60):
        assert gone_before(0, count) == 0
        assert gone_before(count - 1, count) == count
        assert back_after(0, count) == back_after(count // 3, count) == 0
        assert back_after(count, count) == count
        for block in range(1, count):  # nobody waits for a copy that has only just begun
            assert leaving_at(block - 1, count) >= gone_before(block, count)


def test_state_leaves_behind_the_copies_of_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one stream: otherwise its memory could be given up while a checkpoint still reads it."""
    streams = []

    class Seen(HostCopies):
        def __init__(self, device: torch.device, stream: Any = None) -> None:
            super().__init__(device)
            streams.append(stream)

    with Run(optimizer_state="host") as run:
        mark: Any = object()
        monkeypatch.setattr(optimizer_offload, "HostCopies", Seen)
        monkeypatch.setattr(run.engine.copies, "stream", mark)
        run.steps(1)
    assert streams == [mark] * LAYERS


def test_a_step_that_fails_loses_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    with Run(optimizer_state="host") as run:
        run.steps(1)
        before = run.state()
        loss = RandomTask.loss

        def fails(task: RandomTask, batch: dict[str, torch.Tensor], step: int) -> object:
            loss(task, batch, step)
            raise ValueError("after the forward pass")

        monkeypatch.setattr(RandomTask, "loss", fails)
        with pytest.raises(ValueError, match="forward"):
            run.engine.train_step()
        assert not any(run.blocks_here())
        after = run.state()
        assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("files", "gib"),
    [
        ({}, 8.0),
        ({"memory.max": "max", "memory.current": str(2**30), "memory.stat": ""}, 8.0),
        (
            {
                "memory.max": str(6 * 2**30),
                "memory.current": str(5 * 2**30),
                "memory.stat": f"anon 1\ninactive_file {2**30}\n",
            },
            2.0,
        ),
        (
            {
                "memory/memory.limit_in_bytes": str(6 * 2**30),
                "memory/memory.usage_in_bytes": str(5 * 2**30),
                "memory/memory.stat": f"inactive_file 7\ntotal_inactive_file {2**30}\n",
            },
            2.0,
        ),
    ],
    ids=["machine", "no limit", "cgroup 2", "cgroup 1"],
)
def test_host_memory_of_a_container(
    files: dict[str, str], gib: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    texts["proc/meminfo"] = f"MemTotal: 99 kB\nMemAvailable: {8 * 2**20} kB\n"
    for name, text in texts.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert host_bytes_left(tmp_path) == gib * 2**30
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # ranks on this node
    assert host_bytes_left(tmp_path) == gib * 2**30 / 4
