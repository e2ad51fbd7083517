"""Reading metrics.jsonl as training leaves it, also after a kill and a resume; CSV and PNG."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.lib.contract import UserError
from components.lib.report.curve_picture import to_png
from components.lib.report.curves import VALIDATION, read_run, to_csv
from components.lib.report.sources import open_run


def line(step: int, loss: float, split: str = "train", **more: float) -> str:
    return json.dumps({"step": step, "split": split, "loss": loss, **more}) + "\n"


def test_splits_and_quantities_are_kept_apart() -> None:
    data = line(1, 2.0, lr=0.1) + line(1, 1.9, "validation", psnr=20.0) + line(2, 1.5)
    run = read_run("r", data.encode(), "x")
    assert run.get("loss").values == (2.0, 1.5)
    assert run.get("lr").steps == (1,)
    assert run.get("psnr", VALIDATION).values == (20.0,)
    assert run.get("never logged").steps == ()


def test_steps_repeated_after_a_resume_count_once_and_the_last_wins() -> None:
    data = line(1, 5.0) + line(2, 4.0) + line(3, 9.0) + line(2, 4.5) + line(3, 3.0)
    run = read_run("r", data.encode(), "x")
    assert run.get("loss").steps == (1, 2, 3) and run.get("loss").values == (5.0, 4.5, 3.0)


def test_a_cut_off_last_line_is_ignored_and_other_damage_is_named() -> None:
    run = read_run("r", (line(1, 2.0) + '{"step": 2, "lo').encode(), "x")
    assert run.get("loss").steps == (1,)
    with pytest.raises(UserError, match=r"Line 1 of x "):
        read_run("r", ('{"step": 2, "lo\n' + line(1, 2.0)).encode(), "x")


def test_not_a_number_is_kept_for_the_verdict() -> None:
    run = read_run("r", (line(1, float("nan")) + line(2, 1.0)).encode(), "x")
    assert len(run.get("loss").values) == 2 and run.get("loss").finite().values == (1.0,)


def test_csv_holds_every_value_exactly() -> None:
    data = line(1, 0.1 + 0.2, lr=1e-6) + line(2, 1.5, "validation", psnr=20.25)
    rows = list(csv.DictReader(io.StringIO(to_csv([read_run("r", data.encode(), "x")]).decode())))
    assert [(row["split"], row["step"]) for row in rows] == [("train", "1"), ("validation", "2")]
    assert float(rows[0]["loss"]) == 0.1 + 0.2 and float(rows[0]["lr"]) == 1e-6
    assert rows[0]["psnr"] == "" and float(rows[1]["psnr"]) == 20.25


def test_png_shows_the_curve_in_colour_and_is_the_same_each_time() -> None:
    data = "".join(line(step, 2.0 / step) for step in range(1, 50)).encode()
    first = to_png([read_run("r", data, "x")])
    assert first == to_png([read_run("r", data, "x")])
    picture = Image.open(io.BytesIO(first)).convert("RGB")
    assert picture.size == (1440, 750)
    red, green, blue = np.asarray(picture).astype(int).transpose(2, 0, 1)
    drawn = ((blue > red + 60) & (blue > green + 40)).sum()
    assert drawn > 1000, "the trend line covers at least a thousand pixels"


def test_runs_are_found_in_folders_files_and_tensorboard(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(line(1, 2.0))
    (folder / "settings.json").write_text('{"lr": 3}')
    assert open_run(str(folder), None).settings == {"lr": 3}
    assert open_run(str(folder / "metrics.jsonl"), None).name == "mine"
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path / "tb"))
    for step in range(5):
        writer.add_scalar("reduced_train_loss", 5.0 - step, step)
    writer.add_scalar("val_loss", 3.0, 4)
    writer.close()
    run = open_run(str(tmp_path / "tb"), None)
    assert run.get("loss").values == (5.0, 4.0, 3.0, 2.0, 1.0)
    assert run.get("loss", VALIDATION).values == (3.0,)
    with pytest.raises(UserError, match="/nothing"):
        open_run(str(tmp_path / "nothing"), None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"/empty .*metrics\.jsonl"):
        open_run(str(tmp_path / "empty"), None)
