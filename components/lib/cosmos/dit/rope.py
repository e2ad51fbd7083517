"""Positions of the DiT: 3-D rotary angles that know the frame rate, and learnable tables.

Rotary angles are computed per call in fp32 from the token grid, so any size up to the model's
limits works and nothing is cached. The angles of the three axes are concatenated (time, height,
width) and then repeated, and the rotation pairs number i with i + head_dim/2 (not neighbours):
the layout of the published weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.lib.cosmos.dit.config import DiTConfig

Grid = tuple[int, int, int]


def rotary_angles(
    config: DiTConfig, sequence: Tensor, grid: Grid, fps: Tensor | None, batch: int
) -> tuple[Tensor, Tensor]:
    """cos and sin, fp32 [T·H·W, batch or 1, 1, head_dim].

    ``sequence`` is the position counter (buffer ``pos_embedder.seq``); ``fps`` [B] scales time so
    that a second is ``base_fps`` positions whatever the frame rate. Without fps the latent frame
    index is the position.
    """
    frames, height, width = grid
    side = config.head_dim // 6 * 2
    sizes = (config.head_dim - 2 * side, side, side)
    counter = sequence.float()
    frequencies = [
        _frequencies(size, ratio, counter.device)
        for size, ratio in zip(sizes, config.rope_ratio, strict=True)
    ]
    seconds = counter[:frames, None]
    if fps is not None:
        rate = fps.float().reshape(-1)
        seconds = seconds / rate[None, :] * config.base_fps  # [T, B]
    columns = seconds.shape[1]
    time = (seconds[:, :, None] * frequencies[0])[:, None, None]  # [T, 1, 1, B, d]
    rows = (counter[:height, None] * frequencies[1])[None, :, None, None]
    cols = (counter[:width, None] * frequencies[2])[None, None, :, None]
    shape = (frames, height, width, columns, -1)
    half = torch.cat([time.expand(shape), rows.expand(shape), cols.expand(shape)], dim=-1)
    angles = torch.cat([half, half], dim=-1).reshape(-1, columns, 1, config.head_dim)
    return angles.cos(), angles.sin()


def _frequencies(size: int, ratio: float, device: torch.device) -> Tensor:
    theta = 10000.0 * ratio ** (size / (size - 2))
    exponents = torch.arange(0, size, 2, dtype=torch.float32, device=device) / size
    return 1.0 / theta**exponents


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary angles to [S, B, heads, head_dim]; computed in fp32, returned in x's dtype."""
    value = x.float()
    first, second = value.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (value * cos + turned * sin).to(x.dtype)


class Counter(nn.Module):
    """``pos_embedder``: the published checkpoints carry its counter as a buffer."""

    seq: Tensor

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        side = max(config.max_height, config.max_width) // config.patch_spatial
        length = max(config.max_frames // config.patch_temporal, side)
        self.register_buffer("seq", torch.arange(length, dtype=torch.float32))


class LearnablePositions(nn.Module):
    """``extra_pos_embedder``: one table per axis; their sum, normalised, enters every block."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        patch = config.patch_spatial
        self.pos_emb_h = nn.Parameter(torch.zeros(config.max_height // patch, config.hidden))
        self.pos_emb_w = nn.Parameter(torch.zeros(config.max_width // patch, config.hidden))
        self.pos_emb_t = nn.Parameter(
            torch.zeros(config.max_frames // config.patch_temporal, config.hidden)
        )

    def forward(self, grid: Grid) -> Tensor:
        """[T·H·W, 1, hidden]: e / (eps + ‖e‖/√hidden), the norm in fp32."""
        frames, height, width = grid
        total = (
            self.pos_emb_t[:frames, None, None]
            + self.pos_emb_h[None, :height, None]
            + self.pos_emb_w[None, None, :width]
        ).flatten(0, 2)[:, None]
        norm = torch.linalg.vector_norm(total, dim=-1, keepdim=True, dtype=torch.float32)
        return (total / (self.eps + norm * total.shape[-1] ** -0.5)).to(total.dtype)
