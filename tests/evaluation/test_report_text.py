"""The evaluation's report: names of videos, models, prompts and notes stay text in the page."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from components.evaluation.report import write_report
from components.lib.lineage import Lineage, SourceVideo, Step
from components.lib.manifest import Manifest
from components.lib.report.page import Picture
from components.lib.report.scores import ClipScore, Evaluation, ModelRef
from tests.lib.report.foreign_text import NASTY, check_inert
from tests.lib.report.test_foreign_text import training_run


class Files:
    """Takes the report's files as an output would."""

    def __init__(self, uri: str) -> None:
        self.uri, self.store = uri, None
        self.files: dict[str, bytes] = {}
        self.summary: dict[str, Any] = {}
        self.timing: dict[str, float] = {}
        self.metrics: dict[str, float] = {}

    def put_bytes(self, path: str, data: bytes) -> None:
        self.files[path] = data


class Family:
    """Pictures and facts with a text from outside, such as a prompt."""

    def __init__(self, foreign: str) -> None:
        self.foreign = foreign

    def strips(self) -> list[tuple[str, Picture]]:
        return [("a.jpg", Picture(caption=self.foreign, data=b"<b>", media="image/jpeg"))]

    def videos(self) -> list[tuple[str, Picture]]:
        return [("a.mp4", Picture(caption=self.foreign, data=b"<b>", media="video/mp4"))]

    def sections(self, evaluation: Evaluation) -> list[Markup]:
        return []

    def scalars(self) -> dict[str, float]:
        return {}

    def rates(self) -> dict[str, float]:
        return {}

    def facts(self) -> dict[str, Any]:
        return {"prompt": self.foreign, self.foreign: 1}


def scores(foreign: str, shift: float) -> tuple[ClipScore, ...]:
    return tuple(
        ClipScore(
            video=f"s3://{foreign}/{number}", sha256=str(number), drive=f"{foreign} {number % 26}",
            clip=f"{foreign} {number}",
            values={"loss": 1 + shift + number / 100, "loss_sigma_0.5": 1.0, "psnr": 30.0},
        )
        for number in range(52)
    )  # fmt: skip


def report(foreign: str) -> bytes:
    model = ModelRef(name=foreign, digest="d", manifest=foreign)
    evaluation = Evaluation(
        family="dit", metric="loss", better="lower",
        models={"base": model, "candidate": model},
        sets={"held-out": {"base": scores(foreign, 0.1), "candidate": scores(foreign, 0)}},
        notes=(foreign,),
    )  # fmt: skip
    lineage = Lineage(
        steps=(
            Step(stage=foreign, stage_version=foreign, kind="k", uri=foreign, content=foreign,
                 via=foreign),
        ),
        videos=(
            SourceVideo(uri=f"s3://fleet/{foreign}", sha256=foreign, bytes=1, split="train",
                        drive=foreign),
        ),
        missing=(foreign,),
    )  # fmt: skip
    data = Manifest(
        kind="latent-dataset", stage="s", stage_version="1", address="a", uri="u", files=(),
        summary={"prompts": [foreign], foreign: foreign},
    )  # fmt: skip
    output: Any = Files(foreign)
    family: Any = Family(foreign)
    write_report(output, evaluation, training_run(foreign), family, lineage, {"data": data})
    return output.files["report.html"]


def test_texts_from_outside_stay_text() -> None:
    reader = check_inert(report(NASTY), report("plain"))
    text = "".join(reader.text)
    # Model, note, captions (each also an attribute), facts, settings, steps, videos …
    assert text.count(NASTY) >= 20
    # … and the drives, whose names are cut at slashes, in the plot and in the table of all.
    assert "all 26" in text and text.count("{{ 7 * 6 }}") >= 20 + 24 + 26
    assert reader.attributes.count(NASTY) == 2
