"""Videos that no clip can be cut from are replaced; shards that cannot be read stop the run."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.lib.contract import UserError
from components.lib.store import StoreError
from components.lib.train.parallel.layout import start_processes, stop_processes
from components.lib.train.settings.config import TokenizerTrainingConfig, TrainerConfig
from components.lib.train.settings.recipes import recipe
from components.lib.train.tasks.tokenizer import TokenizerTask
from components.lib.video.encode import write_mp4


@pytest.fixture
def mixed_folder(tmp_path: Path) -> Path:
    """Four training videos, of which one is junk and one has too few frames; two held out."""
    folder = tmp_path / "videos"
    folder.mkdir()
    rng = np.random.default_rng(2)
    for name, kinds in {
        "train-0": "good junk",
        "train-1": "short good",
        "validation-0": "short good",
    }.items():
        with tarfile.open(folder / f"{name}.tar", "w") as archive:
            for number, kind in enumerate(kinds.split()):
                file = tmp_path / "clip.mp4"
                picture = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
                count = 3 if kind == "short" else 20
                write_mp4(file, iter([np.roll(picture, i, axis=1) for i in range(count)]), 24.0)
                if kind == "junk":
                    file.write_bytes(b"this is no video")
                archive.add(file, f"{number}.mp4")
    return folder


def test_other_clips_take_the_place_of_unusable_ones_in_every_layout(
    tokenizer_arguments: list[str],
    mixed_folder: Path,
    trainings: Callable[..., None],
    metrics: Callable[..., list[dict[str, float]]],
    tmp_path: Path,
) -> None:
    more = [f"data.path={mixed_folder}", "data.global_batch_size=4", "data.num_workers=1"]
    layouts = [
        {
            "world": world,
            "folder": str(tmp_path / str(world)),
            "arguments": [*tokenizer_arguments, *more],
        }
        for world in (1, 2)
    ]
    trainings(tmp_path, layouts)
    one, two = metrics(tmp_path / "1"), metrics(tmp_path / "2")
    assert [step["step"] for step in two] == [1, 2, 3]
    assert [step["loss"] for step in two] == pytest.approx([step["loss"] for step in one], rel=1e-5)
    said = (tmp_path / "rank-0.log").read_text()
    assert "train-0.tar:1" in said and "train-1.tar:0" in said and "replaced:" in said
    assert "3 frames; clips need" in said
    assert "validation clip 0 replaced" in said and "validation-0.tar:0 has 3 frames" in said
    # fp32 sums in another order, as far apart as in test_layouts; another clip is percents away
    held_out = [metrics(tmp_path / world, "validation")[-1]["loss"] for world in ("1", "2")]
    assert held_out[1] == pytest.approx(held_out[0], rel=1e-4)


class Unreachable:
    """A data set whose store is down."""

    def counts(self, split: str) -> list[int]:
        return [5]

    def read(self, split: str, shard: int, index: int) -> Any:
        raise StoreError("The store does not answer.")


class Junk(Unreachable):
    """A data set without a video."""

    def read(self, split: str, shard: int, index: int) -> Any:
        return f"{split}-0.tar:{index}", {"mp4": b"this is no video"}


@pytest.fixture
def make_task(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], TokenizerTask]]:
    """A tokenizer's training on one process over a data set."""
    monkeypatch.delenv("RANK", raising=False)
    config = recipe("tiny_tokenizer")
    assert isinstance(config, TokenizerTrainingConfig)
    layout = start_processes(TrainerConfig(accelerator="cpu"), model_parallel=False)
    yield lambda source: TokenizerTask(config, layout, source, None, None)
    stop_processes()


def test_a_store_that_is_down_does_not_make_its_videos_bad(
    make_task: Callable[[Any], TokenizerTask], tmp_path: Path
) -> None:
    task = make_task(Unreachable())
    with pytest.raises(StoreError, match="does not answer"):
        task.make_batch([(0, 0, 0)])
    with pytest.raises(StoreError, match="does not answer"):
        task.validation(tmp_path, 0)
    assert task.replaced == 0


def test_nothing_but_junk_stops_the_run_and_names_it(
    make_task: Callable[[Any], TokenizerTask], tmp_path: Path
) -> None:
    task = make_task(Junk())
    with pytest.raises(UserError, match=r"train-0\.tar:\d: it is not a readable video"):
        task.make_batch([(number, 0, 0) for number in range(2)])
    with pytest.raises(UserError, match=r"Of none of the 5 held-out videos.*validation-0\.tar:4"):
        task.validation(tmp_path, 0)
