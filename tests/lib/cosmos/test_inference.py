"""What is done unasked to make inference fast, and that it changes nothing but speed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from components.lib.cosmos import compiler, inference
from components.lib.cosmos.compiler import has_compiler
from components.lib.cosmos.conditions import Conditions
from components.lib.cosmos.dit.network import DIT_PRESETS, DiT
from components.lib.cosmos.inference import (
    LARGE,
    speed_up_dit,
    speed_up_tokenizer,
    why_not_compile,
)
from components.lib.cosmos.tokenizer.network import TOKENIZER_PRESETS, CosmosTokenizer

GPU, CPU = torch.device("cuda"), torch.device("cpu")


def test_large_models_on_gpus_are_compiled_where_there_is_a_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inference, "has_compiler", lambda _: True)
    assert why_not_compile(GPU, 7 * LARGE) == ""
    assert why_not_compile(CPU, 7 * LARGE) == "no GPU"
    assert why_not_compile(GPU, 4_000_000) == "a small model"
    monkeypatch.setattr(inference, "has_compiler", lambda _: False)
    assert "C compiler" in why_not_compile(GPU, 7 * LARGE)


def test_every_published_model_is_large_and_the_tiny_one_is_not() -> None:
    for name, config in DIT_PRESETS.items():
        with torch.device("meta"):
            parameters = sum(p.numel() for p in DiT(config, seed=None).parameters())
        assert (parameters >= LARGE) == (name != "tiny"), name


@pytest.mark.parametrize(
    ("device", "variable", "name"), [("cuda", "CC", "clang"), ("cpu", "CXX", "g++")]
)
def test_a_compiler_is_found_by_path_and_by_environment(
    device: str, variable: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(compiler.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(variable, raising=False)
    assert not has_compiler(device)
    (tmp_path / name).touch(0o755)
    assert has_compiler(device)
    monkeypatch.setenv(variable, "mine")  # which then is the one that is called
    assert not has_compiler(device)
    (tmp_path / "mine").touch(0o755)
    assert has_compiler(device)
    (tmp_path / "Python.h").unlink()
    assert not has_compiler(device)


@pytest.mark.skipif(not has_compiler("cpu"), reason="no C++ compiler")
def test_compiling_when_asked_changes_nothing_but_speed() -> None:
    torch._dynamo.reset()
    config = DIT_PRESETS["tiny"].model_copy(update={"layers": 2})
    plain, fast = DiT(config, seed=1).eval(), DiT(config, seed=1).eval()
    with torch.no_grad():  # some layers start at zero, which would hide the others
        for parameter in plain.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    fast.load_state_dict(plain.state_dict())
    choice = speed_up_dit(plain)
    assert "not compiled" in choice and "GPU" in choice
    before = counters["stats"]["unique_graphs"]
    choice = speed_up_dit(fast, True)
    assert "compiled" in choice and "not compiled" not in choice
    x = torch.randn(1, config.latent_channels, 2, 8, 8)
    text = Conditions(torch.randn(1, 8, config.text_dim))
    with torch.no_grad():
        torch.testing.assert_close(
            fast(x, torch.zeros(1), text), plain(x, torch.zeros(1), text), rtol=1e-4, atol=1e-5
        )
    assert counters["stats"]["unique_graphs"] == before + 1


def test_a_tokenizer_on_the_cpu_stays_as_it_is() -> None:
    tokenizer = CosmosTokenizer(TOKENIZER_PRESETS["tiny-cv"])
    classes = [type(module) for module in tokenizer.modules()]
    speed_up_tokenizer(tokenizer)
    assert [type(module) for module in tokenizer.modules()] == classes
