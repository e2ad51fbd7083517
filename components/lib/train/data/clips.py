"""Clips cut out of videos: seeded position in time and space, mirrored or reversed on request.

Whole videos are kept decoded while they fit the memory bound, since a small data set is visited
again and again; larger ones are decoded from the keyframe before the clip. What a clip shows
depends only on the video and the seed.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Any

import numpy as np
import torch

from components.lib.contract import UserError
from components.lib.train.settings.config import TaskEncoder


class ClipReader:
    """Cuts clips; keeps at most ``max_bytes`` of decoded frames."""

    def __init__(self, encoder: TaskEncoder, max_bytes: int) -> None:
        self.encoder, self.max_bytes = encoder, max_bytes
        self._held: OrderedDict[str, np.ndarray] = OrderedDict()
        self._indexes: OrderedDict[str, Any] = OrderedDict()
        self._lock = Lock()

    def clip(self, name: str, data: bytes, seed: int, *, augment: bool = True) -> torch.Tensor:
        """uint8 [3, T, height, width] of the video in ``data``, called ``name`` in errors.

        Raises UserError for a video that is too short, too small or damaged.
        """
        rng = np.random.default_rng(seed)
        encoder = self.encoder
        frames = self._frame_count(name, data)
        if frames < encoder.temporal_crop:
            raise UserError(
                f"{name} has {frames} frames; clips need {encoder.temporal_crop}. Lower "
                "data.task_encoder.temporal_crop or leave the video out."
            )
        start = 0
        if encoder.position == "random":
            start = int(rng.integers(0, frames - encoder.temporal_crop + 1))
        shown = self._frames(name, data, start, frames)
        return self._cut(name, shown, rng, augment)

    def _cut(
        self, name: str, shown: np.ndarray, rng: np.random.Generator, augment: bool
    ) -> torch.Tensor:
        height, width = self.encoder.crop
        if shown.shape[1] < height or shown.shape[2] < width:
            raise UserError(
                f"{name} is {shown.shape[2]}x{shown.shape[1]} pixels, the crop {width}x{height}. "
                "Lower data.task_encoder.crop_height, or set resize_height and resize_width."
            )
        top = left = 0
        if self.encoder.position == "random":
            top = int(rng.integers(0, shown.shape[1] - height + 1))
            left = int(rng.integers(0, shown.shape[2] - width + 1))
        clip = shown[:, top : top + height, left : left + width]
        if augment and rng.random() < self.encoder.horizontal_flip:
            clip = clip[:, :, ::-1]
        if augment and rng.random() < self.encoder.time_reverse:
            clip = clip[::-1]
        return torch.from_numpy(np.ascontiguousarray(clip.transpose(3, 0, 1, 2)))

    def _size(self) -> tuple[int, int] | None:
        encoder = self.encoder
        return (encoder.resize_height, encoder.resize_width) if encoder.resize_height else None

    def _index(self, name: str, data: bytes) -> Any:
        from components.lib.video.container import named
        from components.lib.video.index import build_index

        with self._lock:
            if name in self._indexes:
                return self._indexes[name]
        index = build_index(named(data, name))
        with self._lock:
            self._indexes[name] = index
            if len(self._indexes) > 4096:
                self._indexes.popitem(last=False)
        return index

    def _frame_count(self, name: str, data: bytes) -> int:
        return int(self._index(name, data).frames)

    def _frames(self, name: str, data: bytes, start: int, total: int) -> np.ndarray:
        """uint8 [T, H, W, 3] of the clip at full (or resized) size."""
        count = self.encoder.temporal_crop
        with self._lock:
            if name in self._held:
                self._held.move_to_end(name)
                return self._held[name][start : start + count]
        clip = self._decode(name, data, start, count)
        if clip[0].nbytes * total * 2 > self.max_bytes:
            return clip
        whole = self._decode(name, data, 0, total)
        with self._lock:
            self._held[name] = whole
            while sum(video.nbytes for video in self._held.values()) > self.max_bytes:
                self._held.popitem(last=False)
        return whole[start : start + count]

    def _decode(self, name: str, data: bytes, start: int, count: int) -> np.ndarray:
        from components.lib.video.container import named
        from components.lib.video.frames import read_clip

        return read_clip(
            named(data, name),
            start=start,
            count=count,
            size=self._size(),
            index=self._index(name, data),
            threads=1,
        )
