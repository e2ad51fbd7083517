"""What the GPU measurements share: timing by events, a step's breakdown by kernel, one table.

Times are medians after warm-up. The limit beside a figure is measured in the same run on the same
device: a large bf16 matrix product on random data and a device-to-device copy.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

PEAK_BF16 = 989e12  # H100 and H200 SXM, dense

KINDS = (
    ("attention", ("sdpa", "flash", "fmha", "dot_do_o", "convert_dq")),
    ("communication", ("nccl",)),
    ("optimizer", ("adam", "multi_tensor", "foreach")),
    ("matrix products", ("nvjet", "gemm", "cutlass", "xmma", "cublas", "convolution", "_mm_")),
    ("copies", ("memcpy", "memset")),
)


class Row(NamedTuple):
    """One measured figure. ``share`` is of the limit named in ``limit``."""

    name: str
    figure: str
    share: str
    limit: str
    peak_gib: float
    note: str = ""


def milliseconds(work: Callable[[], object], repeats: int = 5, warm_up: int = 2) -> float:
    """Median device time of ``work``."""
    for _ in range(warm_up):
        work()
    torch.cuda.synchronize()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def breakdown(work: Callable[[], object]) -> dict[str, float]:
    """Kernel milliseconds of one call by kind; whatever matches none is 'elementwise'."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        work()
        torch.cuda.synchronize()
    sums: dict[str, float] = {}
    for event in trace.key_averages():
        spent = event.self_device_time_total / 1e3
        name = event.key.lower()
        kind = next((k for k, words in KINDS if any(w in name for w in words)), "elementwise")
        if spent:
            sums[kind] = sums.get(kind, 0.0) + spent
    return dict(sorted(sums.items(), key=lambda pair: -pair[1]))


def matrix_rate(size: int = 8192) -> float:
    """FLOP/s of a bf16 matrix product on random data, sustained for about a second."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    elapsed = milliseconds(lambda: [torch.mm(a, b) for _ in range(50)], repeats=5, warm_up=3)
    return 50 * 2 * size**3 / elapsed * 1e3


def copy_rate(gib: float = 4.0) -> float:
    """Bytes/s read plus written of a device-to-device copy."""
    source = torch.empty(int(gib * 2**30), device="cuda", dtype=torch.uint8).random_(256)
    target = torch.empty_like(source)
    return 2 * source.numel() / milliseconds(lambda: target.copy_(source)) * 1e3


def peak_gib() -> float:
    """Most memory allocated since `reset`."""
    return torch.cuda.max_memory_allocated() / 2**30


def reset() -> None:
    """Forget compiled code, cached memory and the memory peak."""
    import gc

    gc.collect()
    torch._dynamo.reset()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """‖value - reference‖ / ‖reference‖ in fp32."""
    value, reference = value.float().cpu(), reference.float().cpu()
    return float((value - reference).norm() / reference.norm())


def header() -> None:
    """Print device, versions and the measured ceilings."""
    name = torch.cuda.get_device_name()
    cudnn = torch.backends.cudnn.version()
    print(f"device: {name}, torch {torch.__version__}, cuDNN {cudnn}")
    print(
        f"ceilings: bf16 matrix product {matrix_rate() / 1e12:.0f} TFLOP/s, "
        f"copy {copy_rate() / 1e12:.2f} TB/s",
        flush=True,
    )


def show(rows: Iterable[Row]) -> None:
    """Print rows as they come."""
    for row in rows:
        print(
            f"{row.name}\t{row.figure}\t{row.share} of {row.limit}\tpeak {row.peak_gib:.1f} GiB"
            f"\t{row.note}",
            flush=True,
        )


def spell(parts: dict[str, float]) -> str:
    """A breakdown in one line."""
    return ", ".join(f"{kind} {value:.0f} ms" for kind, value in parts.items() if value >= 0.5)


def single_process_layout(trainer: Any) -> Any:
    """The engine's layout for one GPU."""
    from components.lib.train.layout import start_processes

    return start_processes(trainer, model_parallel=True)
