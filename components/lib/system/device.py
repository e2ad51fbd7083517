"""Which device and which arithmetic to use when the config says 'auto'."""

from __future__ import annotations

from pathlib import Path

from components.lib.contract import UserError


def pick_devices(names: str) -> list[str]:
    """Devices by name: a list such as ``"cuda:0,cuda:1"``, or ``auto`` for all GPUs, else the CPU.

    Raises UserError for a name that is no device, or a GPU that is not there.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if names == "auto":
        return [f"cuda:{index}" for index in range(gpus)] or ["cpu"]
    devices = [name.strip() for name in names.split(",") if name.strip()]
    for name in devices or [names]:
        kind, _, number = name.partition(":")
        if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
            raise UserError(f"'{name}' is not a device. Use 'auto', 'cpu' or 'cuda:0,cuda:1'.")
        if kind == "cuda" and int(number or 0) >= gpus:
            raise UserError(f"The device '{name}' was asked for, and there are {gpus} GPUs.")
    return devices


def pick_dtype(name: str, device: str) -> str:
    """``auto``: bfloat16 where the device multiplies in it, float32 elsewhere."""
    if name != "auto":
        return name
    return "bfloat16" if device != "cpu" or cpu_has_bfloat16() else "float32"


def cpu_has_bfloat16() -> bool:
    """Whether this CPU has bfloat16 products (AVX512_BF16 or AMX); without, they are emulated."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return bool({"avx512_bf16", "amx_bf16"} & set(flags.split()))
