"""When a GPU's memory runs out, or a compiler is missing, the user is told what to change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from components.lib.contract import UserError
from components.lib.manifest import Manifest
from components.lib.shards.dataset import largest_latent
from components.lib.train import run
from components.lib.train.parallel.layout import stop_processes
from components.lib.train.settings.config import TrainConfig
from components.lib.train.settings.overrides import apply_overrides
from components.lib.train.settings.recipes import recipe

Advice = Callable[..., tuple[str, TrainConfig]]
# What PyTorch 2.13 says.
ALLOCATOR = (
    "CUDA out of memory. Tried to allocate 2.31 GiB. GPU 0 has a total capacity of 79.10 GiB of "
    "which 1.02 GiB is free.\nIncluding non-PyTorch memory, this process has 78.0 GiB in use."
)


@pytest.fixture
def advice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Advice:
    """What a run of a recipe with overrides says when memory runs out, and its config."""

    def build(*_: Any) -> Any:
        raise torch.OutOfMemoryError(ALLOCATOR)

    monkeypatch.setattr(run, "build_engine", build)
    here = ["trainer.accelerator=cpu", "trainer.engine=plain", f"log.log_dir={tmp_path}"]

    def advised(factory: str, *overrides: str) -> tuple[str, TrainConfig]:
        config = apply_overrides(recipe(factory), [*here, *overrides])
        try:
            with pytest.raises(UserError) as told:
                run.train(config)
        finally:
            stop_processes()
        return str(told.value), config

    return advised


def named(text: str) -> list[str]:
    """The settings that the advice names, as overrides."""
    return [part.split()[0] for part in text.split(": ", 1)[1].split("; ")]


def test_a_diffusion_run_is_told_what_to_change(advice: Advice) -> None:
    text, _ = advice("tiny_diffusion", "data.micro_batch_size=4")
    assert "Rank 0" in text
    assert "Tried to allocate 2.31 GiB)" in text
    assert "data.micro_batch_size=1 (now 4)" in text
    assert "trainer.recompute=full" in text
    assert "trainer.optimizer_state=host" in text


def test_what_is_set_already_is_not_advised(advice: Advice) -> None:
    settings = ("trainer.recompute=full", "trainer.optimizer_state=host", "model.lora.rank=16")
    text, _ = advice("tiny_diffusion", "data.micro_batch_size=1", *settings)
    assert named(text) == ["trainer.strategy.tensor_model_parallel_size"]


@pytest.mark.parametrize("factory", ["tiny_diffusion", "tiny_tokenizer"])
def test_every_setting_that_is_advised_exists(factory: str, advice: Advice) -> None:
    text, config = advice(factory, "data.micro_batch_size=2")
    for setting in named(text):
        value: Any = config
        for name in setting.split("=")[0].split("."):
            value = getattr(value, name)


@pytest.mark.parametrize("factory", ["tiny_diffusion", "tiny_tokenizer"])
def test_compiling_without_a_compiler_is_refused_before_anything_is_built(
    factory: str, advice: Advice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "has_compiler", lambda _: False)
    text, _ = advice(factory, "trainer.compile=true")
    assert "g++" in text and "trainer.compile=false" in text
    text, _ = advice(factory, "trainer.compile=false")
    assert "GPU memory" in text, "without compiling it gets as far as memory"


def test_the_largest_latent_is_read_from_the_manifest() -> None:
    def data(*shapes: list[int]) -> Manifest:
        return Manifest.model_construct(summary={"shapes": [{"latent_shape": s} for s in shapes]})

    wide, long = [16, 1, 88, 160], [16, 16, 32, 40]
    assert largest_latent(data(wide, long)) == tuple(long)
    assert largest_latent(data(long)) == tuple(long)
    assert largest_latent(data()) is None
    assert largest_latent(None) is None
