"""Finite scalar quantisation: every latent number is rounded to one of a few levels.

There is no codebook to learn or to collapse; the price is that the levels are fixed by hand.
Computed in fp32 whatever the dtype of the latent, because half precision cannot hold the bounds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class FSQ:
    """Quantiser with the given number of levels per channel; holds no tensors.

    Codes are multiples of 1 / ⌊L/2⌋ within [-1, 1]. The index of a code counts levels in a mixed
    base, the first channel fastest: basis 1, L0, L0·L1, …
    """

    def __init__(self, levels: tuple[int, ...]) -> None:
        if any(level < 2 for level in levels):
            raise ValueError(f"every channel needs at least 2 levels, got {levels}")
        self.levels = levels
        self.codes = math.prod(levels)
        self.basis = tuple(math.prod(levels[:i]) for i in range(len(levels)))

    def quantise(self, z: Tensor) -> Tensor:
        """[B, C, …] -> codes of the same shape and dtype; gradients pass straight through."""
        value = z.float()
        half = self._column([(level - 1) * (1 + 1e-3) / 2 for level in self.levels], value)
        offset = self._column([0.5 if level % 2 == 0 else 0.0 for level in self.levels], value)
        bounded = (value + (offset / half).atanh()).tanh() * half - offset
        rounded = bounded + (bounded.round() - bounded).detach()
        return (rounded / self._halves(value)).to(z.dtype)

    def indices(self, codes: Tensor) -> Tensor:
        """Codes [B, C, …] -> int64 [B, …], each in 0 … ∏ levels - 1."""
        halves = self._halves(codes)
        digits = (codes.float() * halves + halves).round().long()
        basis = torch.tensor(self.basis, device=codes.device).view(1, -1, *[1] * (codes.dim() - 2))
        return (digits * basis).sum(1)

    def codes_of(self, indices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Integers [B, …] -> codes [B, C, …]. ValueError for an index out of range."""
        wide = indices.long()
        if bool(((wide < 0) | (wide >= self.codes)).any()):
            raise ValueError(f"indices must lie within 0 … {self.codes - 1}")
        digits = torch.stack(
            [wide // base % level for base, level in zip(self.basis, self.levels, strict=True)],
            dim=1,
        ).float()
        halves = self._halves(digits)
        return ((digits - halves) / halves).to(dtype)

    def _halves(self, like: Tensor) -> Tensor:
        return self._column([float(level // 2) for level in self.levels], like)

    @staticmethod
    def _column(values: list[float], like: Tensor) -> Tensor:
        column = torch.tensor(values, dtype=torch.float32, device=like.device)
        return column.view(1, -1, *[1] * (like.dim() - 2))
