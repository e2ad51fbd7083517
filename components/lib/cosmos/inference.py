"""What makes inference fast, decided in one place for sampling, evaluation and measurements.

A DiT's blocks are compiled, which fuses the elementwise work between attention and matrix products.
That takes up to a minute for each size of video, so only large models on GPUs get it unasked. A
tokenizer on a GPU computes on channels-last memory, some twice as fast (`channels_last`). The
trade-off: the modules are changed in place, for inference and not for export.
"""

from __future__ import annotations

import torch
from torch import nn

from components.lib.cosmos.compiler import has_compiler
from components.lib.cosmos.dit.network import DiT, configure_blocks

#: Parameters from which compiling pays within one video. The published models have 7e9 and 14e9.
LARGE = 1_000_000_000


def speed_up_dit(model: DiT, compiled: bool | None = None) -> str:
    """Compile the blocks or not; None decides. Returns what was done and why, for a log."""
    device = next(model.parameters()).device
    reason = "as asked"
    if compiled is None:
        obstacle = why_not_compile(device, sum(p.numel() for p in model.parameters()))
        compiled, reason = not obstacle, obstacle or "a large model on a GPU"
    configure_blocks(model, compile_blocks=compiled)
    return f"blocks {'compiled' if compiled else 'not compiled'} ({reason})"


def speed_up_tokenizer(tokenizer: nn.Module) -> None:
    """Convert a tokenizer that is on a GPU to channels-last memory, in place."""
    # diffusers takes seconds to import
    from components.lib.cosmos.tokenizer.channels_last import use_channels_last

    if next(tokenizer.parameters()).is_cuda:
        use_channels_last(tokenizer)


def why_not_compile(device: torch.device, parameters: int) -> str:
    """The reason against compiling unasked, or an empty string."""
    if device.type != "cuda":
        return "no GPU"
    if parameters < LARGE:
        return "a small model"
    if not has_compiler(device.type):
        return "there is no C compiler, or Python's headers are missing"
    return ""
