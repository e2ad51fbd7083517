"""Strips, difference maps and side-by-side frames, checked pixel by pixel."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from components.lib.report.pictures import beside, difference_map, pick, strip, to_frames


def test_positions_are_spread_with_both_ends() -> None:
    assert pick(33, 5) == [0, 8, 16, 24, 32]
    assert pick(3, 5) == [0, 1, 2] and pick(9, 1) == [4] and pick(0, 4) == []


def test_display_range_is_minus_one_to_one() -> None:
    clip = torch.tensor([-1.0, 0.0, 1.0, 5.0]).view(1, 4, 1, 1).expand(3, 4, 2, 2)
    assert to_frames(clip)[:, 0, 0, 0].tolist() == [0, 128, 255, 255]


def test_difference_map_is_black_where_equal_and_brighter_where_worse() -> None:
    original = np.zeros((2, 3, 3), np.uint8)
    other = original.copy()
    other[0, 1], other[0, 2] = 20, 200
    heat = difference_map(original, other).sum(axis=-1)
    assert heat[0, 0] == 0 and heat[0, 0] < heat[0, 1] < heat[0, 2] == 765


def test_rows_and_columns_are_where_they_should_be() -> None:
    red, blue = (np.full((40, 80, 3), colour, np.uint8) for colour in ([255, 0, 0], [0, 0, 255]))
    data = strip({"top": [red, red], "bottom": [blue, blue]}, cell_width=80, label_width=50)
    sheet = np.asarray(Image.open(io.BytesIO(data)))
    assert sheet.shape == (2 * 44, 50 + 2 * 84, 3)
    assert sheet[20, 50 + 40, 0] > 240 and sheet[64, 50 + 84 + 40, 2] > 240
    assert sheet[:44, :50].max() > 150, "the label is written"


def test_clips_stand_side_by_side_with_even_sides() -> None:
    left, right = np.zeros((3, 50, 801, 3), np.uint8), np.full((3, 50, 801, 3), 255, np.uint8)
    frames = beside([left, right], limit=1280)
    assert len(frames) == 3
    height, width = frames[0].shape[:2]
    assert width <= 1280 and width % 2 == 0 and height % 2 == 0
    assert frames[0][:, : width // 2 - 4].max() == 0 and frames[0][:, width // 2 + 4 :].min() == 255
