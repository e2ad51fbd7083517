"""The contact sheet: first, middle and last frame of some of the clips that were selected."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from components.latent_encoding.decode_worker import Frame
from components.lib.shards.latents import ClipInfo

if TYPE_CHECKING:
    from PIL.Image import Image

THUMB_HEIGHT = 120
COLUMNS = 2
CAPTION = 18
GAP = 6


def preview_path(key: str) -> str:
    """Where the preview of a sample lies in the output."""
    return f"previews/{key}.png"


def pick_frames(pieces: Sequence[Frame]) -> list[Frame]:
    """Copies of the first, middle and last frame of a clip given as consecutive pieces."""
    length = sum(len(piece) for piece in pieces)
    return [_frame(pieces, position) for position in (0, (length - 1) // 2, length - 1)]


def preview_png(frames: Sequence[Frame]) -> bytes:
    """Frames [H, W, 3] side by side, `THUMB_HEIGHT` high, as PNG."""
    from PIL import Image

    thumbs = []
    for frame in frames:
        picture = Image.fromarray(frame)
        width = max(1, round(picture.width * THUMB_HEIGHT / picture.height))
        thumbs.append(picture.resize((width, THUMB_HEIGHT), Image.Resampling.BOX))
    strip = Image.new("RGB", (sum(t.width for t in thumbs), THUMB_HEIGHT))
    left = 0
    for thumb in thumbs:
        strip.paste(thumb, (left, 0))
        left += thumb.width
    return _png(strip)


def contact_sheet(previews: Sequence[tuple[ClipInfo, bytes]]) -> bytes:
    """All previews with their captions in a grid, as PNG."""
    from PIL import Image, ImageDraw, ImageFont

    strips = [Image.open(io.BytesIO(data)).convert("RGB") for _, data in previews]
    cell_width = max((strip.width for strip in strips), default=3 * THUMB_HEIGHT)
    columns = min(COLUMNS, max(1, len(strips)))
    rows = -(-len(strips) // columns)
    height = THUMB_HEIGHT + CAPTION + GAP
    sheet = Image.new(
        "RGB", (columns * (cell_width + GAP) + GAP, max(1, rows) * height + GAP), (24, 24, 27)
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    for position, ((info, _), strip) in enumerate(zip(previews, strips, strict=True)):
        left = GAP + (position % columns) * (cell_width + GAP)
        top = GAP + (position // columns) * height
        sheet.paste(strip, (left, top + CAPTION))
        draw.text((left, top), caption(info, cell_width), fill=(228, 228, 231), font=font)
    return _png(sheet)


def caption(info: ClipInfo, width: int) -> str:
    """What a clip is, in one line of about ``width`` pixels."""
    last = info.start + info.num_frames - 1
    frames = f"frames {info.start}-{last}, {info.split}"
    name = info.video.rsplit("/", 1)[-1]
    room = max(8, width // 7 - len(frames) - 2)
    if len(name) > room:
        name = f"{name[: room - 1]}…"
    return f"{name}  {frames}"


def _frame(pieces: Sequence[Frame], position: int) -> Frame:
    for piece in pieces:
        if position < len(piece):
            return np.array(piece[position])
        position -= len(piece)
    raise IndexError(position)


def _png(picture: Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)  # a quarter of the time, little larger
    return buffer.getvalue()
