"""Writes the three TorchScript archives of a tokenizer.

The archives carry their code, so they load with `torch.jit.load` where this project is not
installed, for every length 8k+1 and every size that the compression divides.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from components.lib.cosmos.formats.names import is_ignorable

if TYPE_CHECKING:
    import torch

    from components.lib.cosmos.tokenizer.config import TokenizerConfig


def write_jit(
    folder: Path, config: TokenizerConfig, weights: Mapping[str, torch.Tensor]
) -> list[Path]:
    """Write encoder.jit, decoder.jit and autoencoder.jit; each weight keeps its dtype.

    ``weights`` are all official parameters and nothing else.
    """
    import torch

    from components.lib.cosmos.formats.jit.networks import networks

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with torch.device("meta"):
        modules = networks(config)
    for name, module in modules.items():
        module.to_empty(device="cpu")
        state = {key: weights[key] for key in module.state_dict() if not is_ignorable(key)}
        module.load_state_dict({**_haar_buffers(module, config.patch), **state}, assign=True)
        module.eval().requires_grad_(False)
        with warnings.catch_warnings():
            # TorchScript is deprecated in torch, but it is what the published files are.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            script = torch.jit.script(module)
            temporary = folder / f"{name}.partial"
            script.save(str(temporary))
        temporary.replace(folder / name)
        written.append(folder / name)
    return written


def _haar_buffers(module: torch.nn.Module, patch: int) -> dict[str, torch.Tensor]:
    """Values of the filter buffers, which the meta device does not keep."""
    from components.lib.cosmos.formats.jit.modules import Haar

    values = {}
    for name, part in module.named_modules():
        if isinstance(part, Haar):
            fresh = Haar(patch, part.inverse)
            values.update({f"{name}.{key}": value for key, value in fresh.state_dict().items()})
    return values
