"""Weights out of a tokenizer's TorchScript archives.

TorchScript archives are code. They are opened once, in a child process that has no credentials in
its environment, limits on memory, time and file size, and no network where the kernel allows
that; this process reads only the safetensors file that the child writes. The trade-off: about
three seconds for a child that imports torch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from components.lib.contract import UserError

if TYPE_CHECKING:
    import torch

ARCHIVES = ("autoencoder.jit", "encoder.jit", "decoder.jit")
TIMEOUT_S = 900
_CHILD = Path(__file__).with_name("child.py")


def read_archives(folder: Path, say: Callable[[str], None]) -> dict[str, torch.Tensor]:
    """All tensors of a tokenizer, from autoencoder.jit or else from encoder.jit and decoder.jit."""
    names = ["autoencoder.jit"]
    if not (folder / names[0]).is_file():
        names = ["encoder.jit", "decoder.jit"]
        if lacking := [name for name in names if not (folder / name).is_file()]:
            raise UserError(
                f"{folder} lacks {' and '.join(lacking)}; a tokenizer is read from "
                "autoencoder.jit, or from encoder.jit and decoder.jit together."
            )
    weights: dict[str, torch.Tensor] = {}
    for name in names:
        say(
            f"{name} is TorchScript, which is code: opening it once in a child process without "
            "credentials or network"
        )
        weights.update(read_archive(folder / name))
    return weights


def read_archive(path: Path, timeout_s: float = TIMEOUT_S) -> dict[str, torch.Tensor]:
    """The state dict of one archive. Raises UserError when the child fails or takes too long."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory(prefix="cosmos-jit-") as scratch:
        target = Path(scratch) / "weights.safetensors"
        limit = 4 * path.stat().st_size + 64 * 1024**2
        arguments = [str(path.resolve()), str(target), str(limit), str(int(timeout_s))]
        _run([sys.executable, "-I", str(_CHILD), *arguments], scratch, path, timeout_s)
        try:
            return {key: value.clone() for key, value in load_file(str(target)).items()}
        except (SafetensorError, OSError) as error:
            raise UserError(f"Opening {path} gave no weights ({error}).") from error


def _run(command: list[str], scratch: str, path: Path, timeout_s: float) -> None:
    environment = {
        "PATH": os.defpath,
        "HOME": scratch,
        "TMPDIR": scratch,
        "LANG": "C.UTF-8",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=scratch,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"Opening {path} took longer than {timeout_s:.0f} s and was stopped."
        ) from error
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode != 0:
        last = (errors.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
        raise UserError(
            f"{path} is not a readable TorchScript archive ({last[:300]}). Fetch it again."
        )
