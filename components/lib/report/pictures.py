"""Pictures for a report: film strips, difference maps, contact sheets, all as small PNG or JPEG.

Rows are labelled in the picture itself, because a picture is often looked at alone (in a chat, in
an object store's browser), and the font ships with Pillow, so no system font is needed.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Frame = NDArray[np.uint8]
GAP = 4


def to_frames(clip: Any) -> NDArray[np.uint8]:
    """Tensor [3, T, H, W] in [-1, 1] -> uint8 [T, H, W, 3]."""
    scaled = ((clip.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255)
    return scaled.permute(1, 2, 3, 0).numpy().astype(np.uint8)


def pick(count: int, wanted: int) -> list[int]:
    """``wanted`` positions spread evenly over ``count``, ends included (one: the middle)."""
    if count <= wanted:
        return list(range(count))
    if wanted == 1:
        return [count // 2]
    return [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)]


def difference_map(original: Frame, other: Frame, gain: float = 4.0) -> Frame:
    """Absolute difference of two frames [H, W, 3] as heat: black, red, yellow, white."""
    error = np.abs(original.astype(np.float32) - other.astype(np.float32)).mean(axis=-1)
    level = np.clip(gain * error / 255, 0, 1) * 3
    return (np.clip(np.stack([level, level - 1, level - 2], axis=-1), 0, 1) * 255).astype(np.uint8)


def strip(
    rows: Mapping[str, Sequence[Frame]], *, cell_width: int = 240, label_width: int = 96
) -> bytes:
    """A labelled grid, one row per entry, as JPEG. Frames are [H, W, 3] uint8."""
    rows = {name: frames for name, frames in rows.items() if len(frames)}
    if not rows:
        raise ValueError("a strip needs at least one row of frames")
    first = next(iter(rows.values()))[0]
    cell_height = max(1, round(cell_width * first.shape[0] / first.shape[1]))
    columns = max(len(frames) for frames in rows.values())
    width = label_width + columns * (cell_width + GAP)
    height = len(rows) * (cell_height + GAP)
    sheet = Image.new("RGB", (width, height), (14, 17, 20))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for row, (name, frames) in enumerate(rows.items()):
        top = row * (cell_height + GAP)
        for line, word in enumerate(name.split("\n")):
            draw.text((8, top + 8 + 18 * line), word, font=font, fill=(226, 230, 234))
        for column, frame in enumerate(frames):
            cell = Image.fromarray(frame).resize(
                (cell_width, cell_height), Image.Resampling.LANCZOS
            )
            sheet.paste(cell, (label_width + column * (cell_width + GAP), top))
    stream = io.BytesIO()
    sheet.save(stream, "JPEG", quality=82, optimize=True)
    return stream.getvalue()


def beside(clips: Sequence[NDArray[np.uint8]], limit: int = 1280) -> list[Frame]:
    """Clips [T, H, W, 3] side by side, at most ``limit`` pixels wide, with even sides."""
    joined = [
        np.concatenate([clip[t] for clip in clips], axis=1)
        for t in range(min(len(clip) for clip in clips))
    ]
    height, width = joined[0].shape[:2]
    scale = min(1.0, limit / width)
    size = (max(2, int(width * scale) // 2 * 2), max(2, int(height * scale) // 2 * 2))
    if size == (width, height):
        return joined
    return [
        np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))
        for frame in joined
    ]


def latent_frames(latent: Any, reference: Any, wanted: int) -> list[Frame]:
    """Frames of a latent [C, T, H, W] as colours: its first three channels, scaled as those of
    ``reference`` are, so that several latents can be compared."""
    colours = reference[:3].float()
    middle = colours.mean(dim=(1, 2, 3), keepdim=True)
    spread = 2.5 * colours.std(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)
    frames = to_frames((latent[:3].float().cpu() - middle) / spread)
    return [frames[i] for i in pick(len(frames), wanted)]
