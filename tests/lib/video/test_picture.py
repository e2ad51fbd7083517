"""Colour, size and orientation of decoded pictures, against formulas worked out here."""

from __future__ import annotations

import struct
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from av.sidedata.sidedata import Type
from hypothesis import given
from hypothesis import strategies as st

from components.lib.video.frames import read_clip
from components.lib.video.picture import Orientation, Resize, fit, orientation_of
from tests.lib.video import corpus

# Luma weights of red and blue (ITU-R BT.709, BT.601, BT.2020, SMPTE 240M), by H.273 code.
WEIGHTS = {
    1: (0.2126, 0.0722),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    9: (0.2627, 0.0593),
    7: (0.212, 0.087),
}
FULL, LIMITED = 2, 1


def flat_video(
    path: Path, yuv: tuple[int, int, int], matrix: int | None, range_: int | None, height: int
) -> Path:
    """A lossless video of one colour, tagged with this matrix and range."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, height, "yuv444p"
        stream.codec_context.options = {"qp": "0"}
        if matrix is not None:
            stream.codec_context.colorspace = matrix
        if range_ is not None:
            stream.codec_context.color_range = range_
        frame = av.VideoFrame(64, height, "yuv444p")
        for plane, value in zip(frame.planes, yuv, strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        if matrix is not None:
            frame.colorspace = matrix
        if range_ is not None:
            frame.color_range = range_
        frame.pts = 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def rgb_of(yuv: tuple[int, int, int], matrix: int, full: bool) -> list[float]:
    """The colour that the standards define."""
    y, u, v = yuv
    luma = y / 255 if full else (y - 16) / 219
    blue_difference = (u - 128) / (255 if full else 224)
    red_difference = (v - 128) / (255 if full else 224)
    kr, kb = WEIGHTS[matrix]
    red = luma + 2 * (1 - kr) * red_difference
    blue = luma + 2 * (1 - kb) * blue_difference
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    return [min(max(value, 0.0), 1.0) * 255 for value in (red, green, blue)]


@pytest.mark.parametrize("range_", [None, LIMITED, FULL])
@pytest.mark.parametrize("matrix", [None, *WEIGHTS])
@pytest.mark.parametrize("height", [64, 720])
def test_colours_follow_matrix_and_range(
    tmp_path: Path, matrix: int | None, range_: int | None, height: int
) -> None:
    yuv = (120, 90, 180)
    path = flat_video(tmp_path / "flat.mp4", yuv, matrix, range_, height)
    unspecified = 1 if height >= 720 else 6
    wanted = rgb_of(yuv, matrix or unspecified, range_ == FULL)
    for size in (None, (32, 48)):
        got = read_clip(path, count=1, size=size)[0].reshape(-1, 3)
        assert np.abs(got - np.array(wanted)).max() <= 2.5


@given(
    height=st.integers(16, 400),
    width=st.integers(16, 400),
    target=st.tuples(st.integers(8, 300), st.integers(8, 300)),
    aspect=st.sampled_from([1.0, 0.5, 2.0, 1.094017]),
)
def test_crop_covers_and_pad_fits(
    height: int, width: int, target: tuple[int, int], aspect: float
) -> None:
    cover = fit(height, width, aspect, target, "crop")
    assert cover.height >= target[0] and cover.width >= target[1]
    assert cover.height == target[0] or cover.width == target[1]
    inside = fit(height, width, aspect, target, "pad")
    assert inside.height <= target[0] and inside.width <= target[1]
    for found in (cover, inside):
        shape = width * aspect / height
        rounding = (found.width + 1) / max(found.height - 0.5, 0.5)
        assert (found.width - 1) / (found.height + 1) <= shape * 1.001 or found.width == target[1]
        assert rounding >= shape * 0.999 or found.height <= 1 or found.width == target[1]


@pytest.mark.parametrize("resize", ["crop", "stretch", "pad"])
def test_resizing_a_real_clip(clips: dict[str, Path], resize: Resize) -> None:
    source = read_clip(clips["bikes"], count=1)[0].astype(float)  # 272 x 640
    got = read_clip(clips["bikes"], count=1, size=(136, 136), resize=resize)[0].astype(float)
    assert got.shape == (136, 136, 3)
    if resize == "crop":
        half = _halve(source)[:, 92 : 92 + 136]
        assert np.abs(got - half).mean() < 3
    elif resize == "pad":
        assert got[:38].max() == 0 and got[-38:].max() == 0  # 136 x 57.8 in the middle
        assert got[45:90].mean() > 20
    else:
        assert np.abs(got.mean(axis=(0, 1)) - source.mean(axis=(0, 1))).max() < 2


def _halve(image: np.ndarray) -> np.ndarray:
    return (image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2]) / 4


def test_pixels_that_are_not_square_count_with_their_shape(tmp_path: Path) -> None:
    path = corpus.wide_pixels(tmp_path / "wide.mp4")  # 96 x 128, shown as 96 x 256
    whole = read_clip(path, count=1, size=(96, 256))[0]
    assert corpus.number_of(whole) == 0
    padded = read_clip(path, count=1, size=(128, 128), resize="pad")[0]
    assert padded[:31].max() == 0 and padded[-31:].max() == 0
    assert padded[36:60].mean() > 40


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("horizontal", [False, True])
@pytest.mark.parametrize("vertical", [False, True])
def test_every_display_matrix_moves_pixels_where_it_says(
    transpose: bool, horizontal: bool, vertical: bool
) -> None:
    """A display matrix maps stored (x, y) to shown (x', y') = (a x + c y, b x + d y)."""
    sign_x, sign_y = (-1 if horizontal else 1), (-1 if vertical else 1)
    a, b, c, d = (0, sign_y, sign_x, 0) if transpose else (sign_x, 0, 0, sign_y)
    matrix = struct.pack("<9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)

    class Side(bytes):
        buffer_size = 36

    frame = SimpleNamespace(side_data={Type.DISPLAYMATRIX: Side(matrix)})
    turned = orientation_of(frame)
    assert turned == Orientation(transpose, horizontal, vertical)
    stored = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    shown = turned.apply(stored)
    corners = [(a * x + c * y, b * x + d * y) for y in range(2) for x in range(3)]
    left, top = min(x for x, _ in corners), min(y for _, y in corners)
    for (x, y), (to_x, to_y) in zip(
        [(x, y) for y in range(2) for x in range(3)], corners, strict=True
    ):
        assert np.array_equal(shown[to_y - top, to_x - left], stored[y, x])


@pytest.mark.parametrize("name", ["rotated_90", "rotated_180", "rotated_270"])
def test_size_is_that_of_the_upright_picture(name: str, tmp_path: Path) -> None:
    path = corpus.USABLE[name](tmp_path / "turned.mp4")
    frame = read_clip(path, start=5, count=1, size=(48, 64))[0]
    assert frame.shape == (48, 64, 3)
    assert corpus.number_of(frame) == 5
