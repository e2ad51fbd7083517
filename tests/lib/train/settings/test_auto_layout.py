"""The layout that is chosen fits the GPUs, and the log says what was chosen."""

from __future__ import annotations

import pytest

from components.lib.cosmos.dit.config import DIT_PRESETS
from components.lib.train.settings.auto_layout import (
    choose_tp,
    compile_mode,
    describe_choices,
    resolve_layout,
)
from components.lib.train.settings.overrides import apply_overrides
from components.lib.train.settings.recipes import recipe

GIB = 2.0**30
H100, H200 = 79.1 * GIB, 139.8 * GIB


@pytest.mark.parametrize("model", ["7B", "14B"])
@pytest.mark.parametrize("memory", [H100, H200])
def test_eight_gpus_get_the_guides_layout(model: str, memory: float) -> None:
    assert choose_tp(DIT_PRESETS[model], 8, 8, memory) == 8
    assert choose_tp(DIT_PRESETS[model], 32, 8, memory) == 8


def test_fewer_gpus_share_layers_only_as_far_as_memory_asks() -> None:
    seven = DIT_PRESETS["7B"]
    # By hand, in GiB a GPU: 7.24e9 x 16 / 2 = 53.9 of state, 0.95 of gathered blocks, and
    # activations of 0.43 x (28 x 3 + 24) = 46.4 fully sharded: 101 of 128.6 usable.
    assert choose_tp(seven, 2, 2, H200) == 1
    # On 80 GB neither 101 nor, all recomputed, 53.9 + 0.95 + 0.43 x (28 + 24) = 77 fits into 72.8;
    # shared by two with sequence parallel it is 53.9 + 0.43 x 52 / 2 = 65.
    assert choose_tp(seven, 2, 2, H100) == 2
    # Nothing fits one GPU: the largest size there is.
    assert choose_tp(seven, 1, 1, H100) == 1
    assert choose_tp(DIT_PRESETS["14B"], 4, 4, H200) == 1
    assert choose_tp(DIT_PRESETS["14B"], 2, 2, H100) == 2


def test_a_size_that_is_given_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    wanted = recipe("cosmos_diffusion_7b_text2world_finetune")
    chosen = resolve_layout(wanted, H100)
    assert chosen.trainer.strategy.tensor_model_parallel_size == 8
    given = apply_overrides(wanted, ["trainer.strategy.tensor_model_parallel_size=2"])
    assert resolve_layout(given, H100) == given


def test_tokenizers_are_held_whole_by_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = recipe("train_tokenizer")
    assert resolve_layout(wanted).trainer.strategy.data_parallel_replicas == 1
    monkeypatch.setenv("WORLD_SIZE", "8")
    eight = resolve_layout(wanted, H100)
    assert eight.trainer.strategy.data_parallel_replicas == 8
    assert compile_mode(eight.trainer, 8, "NVIDIA H100") == "reduce-overhead"
    assert compile_mode(eight.trainer, 8, "cpu") == "default"
    sharded = apply_overrides(wanted, ["trainer.strategy.data_parallel_replicas=1"])
    assert resolve_layout(sharded, H100) == sharded
    assert compile_mode(sharded.trainer, 8, "NVIDIA H100") == "default"


def test_on_cpus_nothing_is_shared_unless_asked_for() -> None:
    wanted = recipe("cosmos_diffusion_7b_text2world_finetune")
    cpu = apply_overrides(wanted, ["trainer.accelerator=cpu"])
    assert resolve_layout(cpu).trainer.strategy.tensor_model_parallel_size == 1


def test_the_line_at_start_says_what_runs() -> None:
    wanted = recipe("cosmos_diffusion_7b_text2world_finetune")
    eight = apply_overrides(wanted, ["trainer.strategy.tensor_model_parallel_size=4"])
    assert describe_choices(eight, 8, "NVIDIA H100") == (
        "8 x NVIDIA H100: tensor parallel 4 with sequence parallel, state sharded over 2; "
        "bf16-mixed; blocks compiled, recompute auto; attention cudnn, else flash"
    )
    tokenizer = resolve_layout(recipe("train_tokenizer"))
    assert describe_choices(tokenizer, 1, "cpu") == (
        "1 x cpu: state whole; bf16-mixed; encoder and decoder compiled (default), channels last"
    )
