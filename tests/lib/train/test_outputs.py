"""What a run leaves behind and says: metrics in three places, settings, and why it stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from components.lib.cosmos.model_folder import load_state_dict
from components.lib.train.__main__ import parse
from components.lib.train.engine import Engine
from components.lib.train.parallel.layout import start_processes, stop_processes
from components.lib.train.settings.config import TrainerConfig
from components.lib.train.setup import build_engine

ENGINES = ("plain", "lightning")
RECORDED = {
    *("loss", "grad_norm", "lr", "step_seconds", "data_wait_seconds"),
    *("tokens_per_second", "consumed_samples", "memory_gib"),
}


@pytest.fixture(scope="module")
def runs(
    diffusion_arguments: list[str],
    trainings: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder for each loop, trained with every logger on."""
    root = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", "0" * 40)
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("WANDB_PROJECT_NAME", "guide-project")
        trainings(
            root,
            [
                {
                    "world": 1,
                    "folder": str(root / engine),
                    "arguments": [
                        *diffusion_arguments,
                        f"trainer.engine={engine}",
                        "log.tensorboard=true",
                    ],
                }
                for engine in ENGINES
            ],
        )
    return root


@pytest.mark.parametrize("engine", ENGINES)
def test_every_figure_is_recorded_and_tensorboard_has_the_same(
    engine: str, runs: Path, metrics: Callable[..., list[dict[str, float]]]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = metrics(runs / engine)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(set(line) >= RECORDED for line in lines)
    [events] = (runs / engine / "run" / "tensorboard").glob("events.out.tfevents.*")
    reader = EventAccumulator(str(events))
    reader.Reload()
    for name in ("loss", "grad_norm", "lr", "memory_gib"):
        shown = [(event.step, event.value) for event in reader.Scalars(f"train/{name}")]
        assert [step for step, _ in shown] == [1, 2, 3, 4]
        assert [value for _, value in shown] == pytest.approx([line[name] for line in lines])
    [held_out] = [event.value for event in reader.Scalars("validation/loss")][-1:]
    assert held_out == pytest.approx(metrics(runs / engine, "validation")[-1]["loss"])


@pytest.mark.parametrize("engine", ENGINES)
def test_wandb_gets_the_metrics_in_the_guides_project(engine: str, runs: Path) -> None:
    [recorded] = (runs / engine).rglob("offline-run-*/run-*.wandb")
    content = recorded.read_bytes()
    assert b"guide-project" in content
    assert b"train/loss" in content and b"validation/loss" in content


@pytest.mark.parametrize("engine", ENGINES)
def test_the_resolved_settings_are_stored(
    engine: str, runs: Path, diffusion_arguments: list[str]
) -> None:
    arguments = [*diffusion_arguments, f"trainer.engine={engine}", "log.tensorboard=true"]
    config = parse(["--yes", *arguments, f"log.log_dir={runs / engine}"])
    assert config is not None
    stored = json.loads((runs / engine / "run" / "settings.json").read_text())
    assert stored["config"] == config.model_dump(mode="json")
    assert stored["config"]["optim"]["config"]["lr"] == 1e-3
    assert stored["layout"] == {"tp": 1, "dp": 1, "world": 1}
    assert stored["global_batch_size"] == 4
    assert stored["versions"]["torch"]


def test_utilisation_is_three_forward_passes_over_time_and_peak(
    diffusion_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(Engine, "_peak", lambda self: 2e12)
    config = parse(["--yes", *diffusion_arguments, f"log.log_dir={tmp_path}"])
    assert config is not None
    layout = start_processes(TrainerConfig(accelerator="cpu"), model_parallel=True)
    try:
        engine = build_engine(config, layout, None)
        engine.start_data()
        found = engine.train_step()
        engine.stop_data()
    finally:
        stop_processes()
    # by hand, for four samples: 27 tokens, 2 layers of width 80, 512 rows of text 32 wide
    tokens, width = 27, 80
    forward = 2 * (
        2 * tokens * (4 + 2 + 4) * width**2  # q, k, v, out; q, out; two of the MLP, twice as wide
        + 4 * 512 * 32 * width
        + 4 * tokens**2 * width
        + 4 * tokens * 512 * width
    )
    assert found["mfu"] * found["step_seconds"] * 2e12 == pytest.approx(3 * 4 * forward, rel=1e-6)


def test_a_run_that_diverges_stops_and_says_where(
    diffusion_arguments: list[str], tmp_path: Path
) -> None:
    arguments = [
        *diffusion_arguments,
        "optim.config.lr=1e30",
        "trainer.gradient_clip_val=0",
        "trainer.val_check_interval=0",
        "log.ckpt.every_n_train_steps=1",
        f"log.log_dir={tmp_path}",
    ]
    command = [sys.executable, "-m", "components.lib.train", "--yes", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()[-1]
    assert "error: Step 1: the loss is" in said and "lr 1e+30" in said
    assert "blocks.block" in said or "embedder" in said  # which weights or gradients
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "run.json").exists()
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved == ["step-00000001"]


def test_the_model_may_be_the_best_instead_of_the_last(
    diffusion_arguments: list[str],
    trainings: Callable[..., None],
    metrics: Callable[..., list[dict[str, float]]],
    tmp_path: Path,
) -> None:
    """The oracle: a run that ended at the step whose held-out loss is the lowest."""
    often = [
        *diffusion_arguments,
        "trainer.ema_decay=0.5",
        "trainer.val_check_interval=1",
        "log.ckpt.every_n_train_steps=1",
        "log.ckpt.save_top_k=1",
        "log.ckpt.export=best",
    ]

    def scenario(name: str, *more: str) -> dict[str, object]:
        return {"world": 2, "folder": str(tmp_path / name), "arguments": [*often, *more]}

    def model(name: str, kind: str = "model") -> dict[str, torch.Tensor]:
        return load_state_dict(tmp_path / name / "run" / kind)

    # Steps that go too far, after small ones.
    rising = ["optim.config.lr=1", "optim.lr_scheduler.warmup_steps=100"]
    trainings(tmp_path, [scenario("run", *rising, "trainer.max_steps=8")])
    losses = {record["step"]: record["loss"] for record in metrics(tmp_path / "run", "validation")}
    losses.pop(0)
    best = min(losses, key=lambda step: (losses[step], step))
    assert best < 8, losses
    result = json.loads((tmp_path / "run" / "run" / "run.json").read_text())
    assert (result["steps"], result["exported_step"]) == (8, best)
    manifests = (tmp_path / "run" / "run" / "checkpoints").glob("*/manifest.json")
    assert {path.parent.name for path in manifests} == {f"step-{best:08d}", "step-00000008"}

    ended = [*rising, f"trainer.max_steps={best}", "log.ckpt.export=last"]
    (tmp_path / "ended").mkdir()
    trainings(tmp_path / "ended", [scenario("ended/run", *ended)])
    for kind in ("model", "model_ema"):
        expected, found = model("ended/run", kind), model("run", kind)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
