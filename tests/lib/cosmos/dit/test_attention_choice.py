"""Which attention kernel a device gets."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator

import pytest
import torch

from components.lib.contract import UserError
from components.lib.cosmos.dit import attention
from components.lib.cosmos.dit.attention import choose
from components.lib.cosmos.dit.flash4 import usable

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    attention._flash4_problem.cache_clear()
    yield
    attention._flash4_problem.cache_clear()


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("flash_attn", "flash_attn.cute", "flash_attn.cute.interface"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))


@pytest.mark.usefixtures("package")
def test_hopper_takes_flash4_where_it_is_installed() -> None:
    assert choose("auto", GPU, 128) == "flash4"
    assert choose("cudnn", GPU, 128) == "cudnn"
    assert choose("auto", torch.device("cpu"), 128) == "auto"


@pytest.mark.usefixtures("package")
def test_heads_that_it_does_not_take_get_another_kernel() -> None:
    assert choose("auto", GPU, 20) == choose("auto", GPU, 264) == "auto"
    assert choose("auto", GPU, 8) == choose("auto", GPU, 256) == "flash4"
    with pytest.raises(UserError, match=r"heads of 20, .* multiples of 8 up to 256"):
        choose("flash4", GPU, 20)


@pytest.mark.usefixtures("package")
def test_other_gpus_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert choose("auto", GPU, 128) == "auto"
    with pytest.raises(UserError, match=r"attention=flash4: NVIDIA A100 is no Hopper.*=auto"):
        choose("flash4", GPU, 128)


def test_without_the_package_auto_goes_on_and_flash4_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    assert choose("auto", GPU, 128) == "auto"
    with pytest.raises(UserError, match="flash-attn-4 is not installed"):
        choose("flash4", GPU, 128)


def test_a_package_that_does_not_load_is_no_reason_to_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(name: str) -> None:
        raise ImportError("libcute_dsl_runtime.so: cannot open shared object file")

    monkeypatch.setattr("importlib.import_module", fails)
    assert "cannot open shared object file" in (usable() or "")
    assert choose("auto", GPU, 128) == "auto"
