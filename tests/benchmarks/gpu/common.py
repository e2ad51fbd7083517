"""What the GPU measurements share: timing by events, a step's breakdown by kernel, one table.

Times are medians after warm-up. The limit beside a figure is measured in the same run on the same
device: a large bf16 matrix product on random data and a device-to-device copy.
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from components.training.launch.interface import guide_environment

PEAK_BF16 = 989e12  # H100 and H200 SXM, dense

KINDS = (
    ("attention", ("sdpa", "flash", "fmha", "dot_do_o", "convert_dq", "scaled_dot_product")),
    ("communication", ("nccl", "gloo", "c10d", "_c10d_functional", "wait_tensor")),
    ("optimizer", ("adam", "multi_tensor", "foreach")),
    (
        "matrix products",
        ("nvjet", "gemm", "cutlass", "xmma", "cublas", "convolution", "_mm_", "::mm", "::bmm"),
    ),
    ("copies", ("memcpy", "memset", "::copy_")),
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
    """Median time of ``work``, by the device's own clock on a GPU."""
    cuda = torch.cuda.is_available()
    for _ in range(warm_up):
        work()
    times = []
    for _ in range(repeats):
        if not cuda:
            begun = time.perf_counter()
            work()
            times.append((time.perf_counter() - begun) * 1e3)
            continue
        torch.cuda.synchronize()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def kind_of(name: str) -> str:
    """Which part of a step a kernel (or, on a CPU, an operator) belongs to, by its name."""
    lower = name.lower()
    return next((kind for kind, words in KINDS if any(w in lower for w in words)), "elementwise")


def breakdown(work: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of one call by kind, largest first; whatever matches no kind is 'elementwise'.

    On a GPU: kernel time, beside it 'exposed communication' and 'exposed copies' (while nothing
    else ran, or only the former) and 'idle' (no kernel at all). On a CPU: the operators' own time.
    """
    from torch.profiler import ProfilerActivity, profile

    cuda = torch.cuda.is_available()
    activity = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
    with profile(activities=[activity]) as trace:
        begun = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        wall = (time.perf_counter() - begun) * 1e3
    sums: dict[str, float] = {}
    if cuda:
        spans = [
            (event.time_range.start / 1e3, event.time_range.end / 1e3, kind_of(event.name))
            for event in trace.events()
            if event.device_type == torch.autograd.DeviceType.CUDA
        ]
        for start, end, kind in spans:
            sums[kind] = sums.get(kind, 0.0) + end - start

        def without(*kinds: str) -> float:
            return covered((start, end) for start, end, kind in spans if kind not in kinds)

        busy, moving = without(), ("copies", "communication")
        sums["exposed copies"] = busy - without("copies")
        sums["exposed communication"] = without("copies") - without(*moving)
        sums["idle"] = max(wall - busy, 0.0)
    else:
        for event in trace.key_averages():
            kind = kind_of(event.key)
            sums[kind] = sums.get(kind, 0.0) + event.self_cpu_time_total / 1e3
    return dict(sorted(((k, v) for k, v in sums.items() if v > 0), key=lambda pair: -pair[1]))


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of (start, end) intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


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
    """Most memory allocated since `reset`; on a CPU the most this process ever held."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def allocator_retries() -> int:
    """How often the allocator had to give memory back and ask again: each costs a stop."""
    if not torch.cuda.is_available():
        return 0
    return int(torch.cuda.memory_stats().get("num_alloc_retries", 0))


def reset() -> None:
    """Forget compiled code, cached memory and the memory peak."""
    import gc

    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """‖value - reference‖ / ‖reference‖ in fp32."""
    value, reference = value.float().cpu(), reference.float().cpu()
    return float((value - reference).norm() / reference.norm())


def header() -> None:
    """Print device, versions and the measured ceilings (none without a GPU).

    Comes first: it also sets the allocator as the launchers do, which works only before its use.
    """
    for name, value in guide_environment(torch.cuda.device_count()).items():
        os.environ.setdefault(name, value)
    if not torch.cuda.is_available():
        print(f"device: CPU, torch {torch.__version__}: this proves the command, not a speed")
        return
    name = torch.cuda.get_device_name()
    cudnn = torch.backends.cudnn.version()
    allocator = os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")
    print(f"device: {name}, torch {torch.__version__}, cuDNN {cudnn}, allocator {allocator}")
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
    from components.lib.train.parallel.layout import start_processes

    return start_processes(trainer, model_parallel=True)
