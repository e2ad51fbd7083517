"""Evaluation and promotion together, with real tiny models, over two generations."""

from __future__ import annotations

from typing import Any

import pytest

from components.evaluation.config import EvaluationConfig
from components.evaluation.stage import run as evaluate
from components.lib.cosmos.model_folder import save_model_folder
from components.lib.lineage import parse_lineage
from components.lib.registry import Registry, models_root
from components.lib.report.scores import parse_evaluation
from components.promotion.config import PromotionConfig
from components.promotion.stage import run as promote


@pytest.fixture
def cycle(diffusion: Any, store: Any, storage_root: Any, progress: Any) -> Any:
    """Evaluate and promote one training run; returns both results."""

    def go(training: Any, checkpoint: Any) -> Any:
        judged = evaluate(
            EvaluationConfig(
                training=training, checkpoint=checkpoint, data=diffusion.data, model_name="m",
                storage_root=storage_root, sigmas=3, shown=0, samples=0,
            ),
            store, progress,
        )  # fmt: skip
        decided = promote(
            PromotionConfig(
                training=training, evaluation=judged.manifest_uri, model_name="m",
                storage_root=storage_root,
            ),
            store, progress,
        )  # fmt: skip
        return judged, decided

    return go


def test_two_generations(
    diffusion: Any,
    publish_run: Any,
    store: Any,
    storage_root: Any,
    cycle: Any,
    tmp_path: Any,
    read: Any,
    progress: Any,
) -> None:
    registry = Registry(store, models_root(storage_root), "m")
    first = cycle(diffusion.training, diffusion.base)
    assert first[1].manifest.summary["production"] == "m@1"
    again = cycle(diffusion.training, diffusion.base)
    assert again[0].reused and again[1].reused, "a second identical run finds both finished"

    # The second generation starts from production, as fleet retraining does.
    start = registry.version_uri(1) + "manifest.json"
    state = {key: value.clone() for key, value in diffusion.after_model.state_dict().items()}
    for name, value in state.items():
        if name.startswith("final_layer.linear"):
            value.mul_(0.8)
    folder = save_model_folder(tmp_path / "next", "dit", "tiny", diffusion.config, state)
    files = {f"model/{path.name}": path.read_bytes() for path in folder.iterdir()}
    training = publish_run("next", files, {"checkpoint": start, "data": diffusion.data})
    judged, decided = cycle(training, start)
    found = parse_evaluation(read(judged.manifest, "evaluation.json"), "")
    assert found.models["production"].version == 1
    assert found.clips("production") == found.clips("base"), "equal weights are measured once"
    assert decided.manifest.summary["production"] == "m@2"
    assert judged.metrics["improvement_over_production"] > 0
    assert "in production" in read(judged.manifest, "report.html").decode()
    lineage = parse_lineage(store.get_bytes(registry.version_uri(2) + "lineage.json"), "")
    assert {step.via for step in lineage.steps} == {"", "m@1"}
    assert len(lineage.videos) == 6

    judged_again, decided_again = cycle(training, start)
    assert judged_again.reused and decided_again.reused

    # What is no better than production does not replace it.
    worse = publish_run(
        "worse",
        {f"model/{p.name}": p.read_bytes() for p in (tmp_path / "base").iterdir()},
        {"checkpoint": start, "data": diffusion.data},
    )
    assert cycle(worse, start)[1].manifest.summary["decision"] == "refused"
    head = registry.production()
    assert head is not None and head.version == 2
