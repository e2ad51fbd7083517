"""The DiT's attention alone, by kernel: 56,320 tokens attending to each other and to the text.

``python -m tests.benchmarks.gpu.attention [cudnn] [flash4] [flash]`` times forward and backward of
one layer of 7B (32 heads of 128) and compares result and gradients with fp32 on some heads. Rates
count what the kernels do: the backward pass computes the scores again, so it is 2.5 times the
forward pass, of which MFU counts 2. The last line names the kernel that is fastest in sum.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from components.lib.cosmos.dit.attention import AttentionBackend, attend
from components.lib.cosmos.dit.flash4 import usable
from tests.benchmarks.gpu.common import Row, header, milliseconds, peak_gib, relative_error, reset
from tests.benchmarks.gpu.common import show as show_rows

CUDA = torch.cuda.is_available()
TOKENS, TEXT, HEADS, SIZE = (56_320, 512, 32, 128) if CUDA else (64, 16, 2, 16)
NEAR = 2e-2  # of the fp32 result; bf16 rounds each score and weight


def inputs(keys: int, tokens: int = TOKENS, heads: int = HEADS) -> list[Tensor]:
    """Query, key, value [rows, 1, heads, size] and the gradient of the result."""
    torch.manual_seed(0)
    device, dtype = ("cuda", torch.bfloat16) if CUDA else ("cpu", torch.float32)
    shapes = [(rows, 1, heads, SIZE) for rows in (tokens, keys, keys)]
    made = [torch.randn(shape, device=device, dtype=dtype) for shape in shapes]
    grad = torch.randn(tokens, 1, heads * SIZE, device=device, dtype=dtype)
    return [*(part.requires_grad_() for part in made), grad]


def both(backend: AttentionBackend, given: list[Tensor]) -> Callable[[], list[Tensor]]:
    """Forward and backward: the result and the three gradients."""
    query, key, value, grad = given

    def work() -> list[Tensor]:
        out = attend(query, key, value, backend)
        return [out.detach(), *torch.autograd.grad(out, (query, key, value), grad)]

    return work


def check(backend: AttentionBackend) -> str:
    """The kernel against fp32 on the CPU: 1,000 tokens, four heads. AssertionError past `NEAR`."""
    words = []
    for keys in (1000, TEXT):
        given = inputs(keys, 1000, 4)
        exact = [part.detach().float().cpu().requires_grad_(part.requires_grad) for part in given]
        found, wanted = both(backend, given)(), both("math", exact)()
        errors = [relative_error(f, w) for f, w in zip(found, wanted, strict=True)]
        assert max(errors) < NEAR, (backend, keys, errors)
        words.append(f"{keys} keys {max(errors):.1e}")
    return f"parity of {backend} with fp32, result and gradients: {', '.join(words)}"


def rows(backend: AttentionBackend, spent: dict[str, float]) -> Iterator[Row]:
    """Two rows, for attention to the video and to the text; their sum goes to ``spent``."""
    for keys, name in ((TOKENS, "itself"), (TEXT, "the text")):
        reset()
        given = inputs(keys)
        query, key, value, _ = given
        with torch.no_grad():
            forward = milliseconds(partial(attend, query, key, value, backend))
        total = milliseconds(both(backend, given))
        flops = 4 * TOKENS * keys * HEADS * SIZE
        backward = total - forward
        spent[backend] = spent.get(backend, 0.0) + total
        rates = [flops * n / ms / 1e9 for n, ms in ((1, forward), (2.5, backward))]
        yield Row(
            f"{backend}, video to {name}",
            f"forward {forward:.2f} ms, backward {backward:.2f} ms",
            f"{3 * flops / total / 1e9 / 989:.1%}",
            "989 TFLOP/s (MFU)",
            peak_gib(),
            f"kernels {rates[0]:.0f} and {rates[1]:.0f} TFLOP/s",
        )


def main(kernels: list[str]) -> None:
    header()
    if usable() is None:
        print(f"flash-attn-4 {importlib.metadata.version('flash-attn-4')}")
    spent: dict[str, float] = {}
    for kernel in kernels:
        print(check(kernel), flush=True)  # type: ignore[arg-type]
        show_rows(rows(kernel, spent))  # type: ignore[arg-type]
    print(f"fastest: {min(spent, key=lambda name: spent[name])}")


if __name__ == "__main__":
    default = ["cudnn", *(["flash4"] if usable() is None else []), "flash"] if CUDA else ["auto"]
    main(sys.argv[1:] or default)
