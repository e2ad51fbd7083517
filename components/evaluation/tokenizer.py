"""Reconstruction quality of a tokenizer on held-out videos, and pictures of it.

Each video is measured on one clip: frames from its middle, centre-cropped. The same pixels go
through every model. Metrics are taken on the 8-bit pictures a viewer would see.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.evaluation.held_out import VideoClip
from components.lib.contract import Progress, UserError
from components.lib.cosmos.tokenizer.config import TokenizerConfig
from components.lib.report import quality
from components.lib.report.pictures import to_frames
from components.lib.report.scores import ClipScore

Clip = NDArray[np.uint8]


class Measured(NamedTuple):
    """Scores of one model, what it made of the first clips, and how fast it was.

    ``shown`` is clip key -> (original, reconstruction), uint8 [T, H, W, 3].
    """

    scores: list[ClipScore]
    shown: dict[str, tuple[Clip, Clip]]
    codes: quality.CodeUse | None
    frames: int
    encode_seconds: float
    decode_seconds: float


def middle_clip(clip: VideoClip, frames: int, crop: int, config: TokenizerConfig) -> Clip:
    """uint8 [T, H, W, 3] from the middle of a video, as large as the tokenizer codes without loss.

    At most ``frames`` frames; ``crop`` bounds both sides (0: whole picture).
    """
    from components.lib.video.container import named
    from components.lib.video.frames import iter_frames
    from components.lib.video.index import build_index

    index = build_index(named(clip.mp4, clip.video))
    count = config.whole_frames(min(frames, index.frames))
    start = (index.frames - count) // 2
    frames_of = iter_frames(named(clip.mp4, clip.video), start=start, count=count, index=index)
    multiple = config.size_multiple
    taken = [_centre(frame, crop, multiple) for frame in frames_of]
    if not taken or min(taken[0].shape[:2]) < multiple:
        raise UserError(f"{clip.video} is too small to be measured: {multiple} pixels are needed.")
    return np.stack(taken)


def _centre(frame: Clip, crop: int, multiple: int) -> Clip:
    height, width = (
        (min(side, crop) if crop else side) // multiple * multiple for side in frame.shape[:2]
    )
    top, left = (frame.shape[0] - height) // 2, (frame.shape[1] - width) // 2
    return frame[top : top + height, left : left + width]


def to_video(clip: Clip) -> Tensor:
    """uint8 [T, H, W, 3] -> [1, 3, T, H, W] in [-1, 1]."""
    return torch.from_numpy(clip.copy()).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def measure(
    model: Any,
    clips: Iterable[VideoClip],
    *,
    frames: int,
    crop: int,
    shown: int,
    vgg: FeatureDistance | None,
    device: str,
    progress: Progress,
    total: int,
    what: str,
) -> Measured:
    """``psnr``, ``ssim``, ``ms_ssim`` (large pictures), ``temporal_error``, ``vgg_distance`` (when
    VGG weights are given) of every video, and ``bits_per_pixel``."""
    scores: list[ClipScore] = []
    kept: dict[str, tuple[Clip, Clip]] = {}
    indices: list[Tensor] = []
    total_frames, spent = 0, [0.0, 0.0]
    config = model.config
    with torch.inference_mode(), progress.task(what, total, "videos") as task:
        for clip in clips:
            original = middle_clip(clip, frames, crop, config)
            video = to_video(original).to(device)
            latent, spent[0] = _timed(model.encode, video, device, spent[0])
            if model.discrete:
                indices.append(model.fsq.indices(latent).cpu())
            found, spent[1] = _timed(model.decode, latent, device, spent[1])
            made = to_frames(found[0, :, : len(original)])
            scores.append(_score(clip, original, made, vgg, device))
            if len(kept) < shown:
                kept[f"{clip.video} ({clip.key})"] = (original, made)
            total_frames += len(original)
            task.advance()
    codes = None
    if model.discrete:
        codes = quality.code_use(indices, int(np.prod(config.fsq_levels)))
    return Measured(scores, kept, codes, total_frames, spent[0], spent[1])


def _timed(work: Any, value: Tensor, device: str, before: float) -> tuple[Tensor, float]:
    started = time.perf_counter()
    result = work(value)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return result, before + time.perf_counter() - started


def _score(
    clip: VideoClip, original: Clip, made: Clip, vgg: FeatureDistance | None, device: str
) -> ClipScore:
    x, y = _unit(original).to(device), _unit(made).to(device)
    values = {
        "psnr": quality.psnr(x, y),
        "ssim": quality.ssim(x, y),
        "temporal_error": quality.temporal_error(x, y),
    }
    multi = quality.ms_ssim(x, y)
    if multi is not None:
        values["ms_ssim"] = multi
    if vgg is not None:
        values["vgg_distance"] = vgg(x, y)
    return ClipScore(
        video=clip.video, sha256=clip.sha256, drive=clip.drive, clip=clip.key, values=values
    )


class FeatureDistance:
    """The training loss's perceptual term between two clips [T, 3, H, W] in [0, 1]."""

    def __init__(self, folder: Path, device: str) -> None:
        from components.lib.cosmos.perceptual import feature_terms, load_vgg16

        self.vgg, self.terms = load_vgg16(folder).to(device), feature_terms

    def __call__(self, original: Tensor, other: Tensor) -> float:
        """Mean over frames; one frame at a time, so that memory does not grow with the clip."""
        total = 0.0
        for x, y in zip(original, other, strict=True):
            first, second = (2 * frame[None, :, None] - 1 for frame in (x, y))
            total += float(self.terms(self.vgg, first, second, gram=False)[0])
        return total / len(original)


def _unit(clip: Clip) -> Tensor:
    return torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 255


def compression(config: TokenizerConfig, frames: int, height: int, width: int) -> float:
    """Bits of one clip as 8-bit RGB over bits of its latent (bf16, or code indices)."""
    channels, t, h, w = config.latent_shape(frames, height, width)
    bits = 16.0 * channels
    if config.fsq_levels is not None:
        bits = float(np.log2(np.prod(config.fsq_levels)))
    return 24.0 * frames * height * width / (bits * t * h * w)
