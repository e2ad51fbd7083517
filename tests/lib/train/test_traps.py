"""Traps of the training stack that no other test would notice, one test each.

Partial gradients, sequence parallelism's factor, the global norm and the layout of checkpoints are
covered by the equality of all layouts (`test_layouts`) and of every gradient (`test_parity`).
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from components.lib.cosmos.conditions import Conditions
from components.lib.cosmos.dit.network import DIT_PRESETS, DiT
from components.lib.cosmos.tokenizer.fsq import FSQ
from components.lib.train.engine import Engine
from components.lib.train.parallel.layout import start_processes, stop_processes
from components.lib.train.settings.config import TrainerConfig
from components.lib.train.setup import build_engine

LOCK = Path(__file__).parents[3] / "requirements" / "lock.txt"


def locked(package: str) -> str | None:
    found = re.search(rf"^{re.escape(package)}==(\S+)", LOCK.read_text(), re.M | re.I)
    return found[1] if found else None


def test_attention_never_holds_tokens_by_tokens() -> None:
    """A table of S x S would be 25 GB a layer at 56,320 tokens."""
    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(
            self,
            func: Callable[..., Any],
            types: object,
            args: tuple[Any, ...] = (),
            kwargs: Mapping[str, Any] | None = None,
        ) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple | list) else (out,):
                if isinstance(value, torch.Tensor):
                    largest = max(largest, value.numel())
            return out

    config = DIT_PRESETS["tiny"].model_copy(update={"layers": 1, "max_height": 64, "max_width": 64})
    tokens = 4 * 32 * 32
    model = DiT(config)
    with Largest():
        text = Conditions(torch.zeros(1, 8, 64))
        out = model(torch.zeros(1, 16, 4, 64, 64), torch.zeros(1), text)
        out.square().mean().backward()
    assert largest < tokens * tokens / 4
    assert largest >= tokens * config.ffn  # the widest activation, so something was measured


def test_validation_leaves_no_gathered_weights_behind(
    diffusion_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forward pass without backward leaves FSDP's root gathered; shards would be read stale."""
    from torch.distributed.tensor import DTensor

    from components.lib.train.__main__ import parse

    monkeypatch.delenv("RANK", raising=False)
    config = parse(["--yes", *diffusion_arguments, f"log.log_dir={tmp_path}"])
    assert config is not None
    layout = start_processes(TrainerConfig(accelerator="cpu"), model_parallel=True)
    try:
        engine: Engine = build_engine(config, layout, None)
        engine.task.validation(tmp_path / "pictures", 0)
        gathered = [p for p in engine.task.model.parameters() if not isinstance(p, DTensor)]
        assert gathered, "FSDP cleans up by itself now: reshard() is not needed any more"
        engine.reshard()
        assert all(isinstance(p, DTensor) for p in engine.task.model.parameters())
        # names were taken before FSDP replaced the parameters
        assert set(engine.parameters) == {n for n, _ in engine.task.model.named_parameters()}
    finally:
        stop_processes()


def test_fp32_tokenizers_stay_fp32() -> None:
    """The reference's quantiser gives bf16 whatever it gets."""
    codes = FSQ((8, 8, 8, 5, 5, 5)).quantise(torch.randn(1, 6, 4))
    assert codes.dtype == torch.float32


def test_importing_the_trainer_starts_nothing() -> None:
    """Libraries that spawn processes import the entry script again."""
    code = "import runpy, sys; runpy.run_module('components.lib.train.__main__', run_name='again')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_locked_set_avoids_what_does_not_work_together() -> None:
    assert locked("torchvision") is None  # does not load beside the CPU build of torch
    core = locked("megatron-core")
    assert core is not None and tuple(map(int, core.split(".")[:2])) < (0, 18)  # would need triton
    assert locked("lightning") == "2.4.0"  # NeMo uses its private interfaces
    nemo = locked("nemo-toolkit") or locked("nemo_toolkit")
    assert nemo is not None and nemo.startswith("3.")
    transformers = locked("transformers")
    assert transformers is not None and int(transformers.split(".")[0]) >= 5
    sources = Path(__file__).parents[3] / "components"
    assert not [path for path in sources.rglob("*.py") if "batch_encode_plus" in path.read_text()]
