"""Apply a coder to overlapping tiles of a picture and blend the results.

Weights rise linearly across an overlap, so no seam is visible, though a tile cannot see the
picture around it (the coders attend over the whole frame) and the result differs slightly from
coding in one piece.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def tiled(
    code: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int, up: int, down: int
) -> Tensor:
    """code(x) computed in tiles of ``tile`` x ``tile`` input positions.

    ``x`` is [B, C, T, H, W]; the result's height and width are ``up / down`` times the input's.
    Tile and overlap must be multiples of ``down``. fp32 accumulation, result in code's dtype.
    """
    height, width = x.shape[-2:]
    rows, cols = _starts(height, tile, overlap), _starts(width, tile, overlap)
    if len(rows) == len(cols) == 1:
        return code(x)
    total: Tensor | None = None
    weight = torch.zeros(height * up // down, width * up // down, device=x.device)
    dtype = x.dtype
    for top in rows:
        for left in cols:
            part = code(x[..., top : top + tile, left : left + tile])
            dtype = part.dtype
            if total is None:
                total = part.new_zeros(*part.shape[:-2], *weight.shape, dtype=torch.float32)
            ramp = overlap * up // down
            share = torch.outer(
                _share(part.shape[-2], ramp, top > 0, top + tile < height, x.device),
                _share(part.shape[-1], ramp, left > 0, left + tile < width, x.device),
            )
            y, z = top * up // down, left * up // down
            view = (slice(y, y + part.shape[-2]), slice(z, z + part.shape[-1]))
            total[(..., *view)] += part.float() * share
            weight[view] += share
    assert total is not None
    return (total / weight).to(dtype)


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    if size <= tile:
        return [0]
    step = tile - overlap
    return [*range(0, size - tile, step), size - tile]


def _share(size: int, ramp: int, before: bool, after: bool, device: torch.device) -> Tensor:
    share = torch.ones(size, device=device)
    if ramp:
        rise = (torch.arange(ramp, device=device) + 1) / (ramp + 1)
        if before:
            share[:ramp] *= rise
        if after:
            share[-ramp:] *= rise.flip(0)
    return share
