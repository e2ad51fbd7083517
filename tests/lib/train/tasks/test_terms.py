"""The tokenizer's loss in a real training: which terms count at which global step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from components.lib.contract import UserError
from components.lib.cosmos.formats import tiny
from components.lib.cosmos.formats.importing import import_model
from components.lib.cosmos.perceptual import load_vgg16

CHANGE = 2  # the step at which the weights change
SCHEDULE = [
    "model.perceptual_weight=[0.1, 0.05]",
    f"model.perceptual_boundary={CHANGE}",
    "model.gram_weight=[0.0, 0.062]",
    f"model.gram_boundary={CHANGE}",
]


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow VGG16, as checkpoint_fetch leaves it."""
    folder = tmp_path_factory.mktemp("vgg")
    tiny.write_vgg(folder / "published", 0)
    import_model(folder / "published", folder / "canonical", role="vgg16")
    return folder / "canonical"


@pytest.fixture(scope="module")
def runs(
    vgg: Path,
    tokenizer_arguments: list[str],
    trainings: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Folders `constant`, `scheduled`, and `resumed`: the second one, interrupted after a step."""
    root = tmp_path_factory.mktemp("terms")
    common = [*tokenizer_arguments, f"model.vgg_path={vgg}", "trainer.max_steps=4"]
    common.append("trainer.val_check_interval=0")
    scheduled = [*common, *SCHEDULE]
    scenarios = {
        "constant": [*common, "model.perceptual_weight=[0.1, 0.1]"],
        "scheduled": scheduled,
        "begun": [*scheduled, "trainer.max_steps=1"],
    }
    trainings(
        root,
        [
            *(
                {"world": 1, "folder": str(root / name), "arguments": arguments}
                for name, arguments in scenarios.items()
            ),
            {
                "world": 1,
                "folder": str(root / "resumed"),
                "copy_of": str(root / "begun"),
                "arguments": scheduled,
            },
        ],
    )
    return root


def test_terms_follow_the_global_step(
    runs: Path, metrics: Callable[..., list[dict[str, float]]]
) -> None:
    constant, scheduled = metrics(runs / "constant"), metrics(runs / "scheduled")
    for step in range(CHANGE):
        assert scheduled[step]["loss"] == constant[step]["loss"]
        assert "gram" not in scheduled[step] and scheduled[step]["lpips"] > 0
    # the weights of the network are still equal at the step that changes the terms
    at = scheduled[CHANGE]
    assert at["lpips"] == pytest.approx(constant[CHANGE]["lpips"] / 2, rel=1e-6)
    assert at["gram"] > 0
    for line in scheduled:
        terms = line["color"] + line["lpips"] + line.get("gram", 0.0)
        assert line["loss"] == pytest.approx(terms, rel=1e-6)


def test_a_resumed_run_does_not_begin_the_schedule_again(
    runs: Path, metrics: Callable[..., list[dict[str, float]]]
) -> None:
    for name in ("loss", "lpips", "gram", "grad_norm"):
        found = [step.get(name) for step in metrics(runs / "resumed")]
        assert found == [step.get(name) for step in metrics(runs / "scheduled")]


def test_vgg_weights_of_another_network_are_refused(
    vgg: Path, dit_folder: Path, tmp_path: Path
) -> None:
    assert load_vgg16(vgg).features[0].out_channels == tiny.TINY_VGG_CHANNELS[0]
    with pytest.raises(UserError, match=r"model\.vgg_path holds a dit"):
        load_vgg16(dit_folder)


@pytest.mark.parametrize("frames", [9, 25])
def test_utilisation_counts_what_torch_counts(frames: int) -> None:
    from types import SimpleNamespace

    from components.lib.cosmos.tokenizer.network import TOKENIZER_PRESETS, CosmosTokenizer
    from components.lib.train.tasks.tokenizer import TokenizerTask

    network = TOKENIZER_PRESETS["tiny-cv"].model_copy(update={"window": 17})
    video = torch.zeros(2, 3, frames, 32, 48, dtype=torch.uint8)
    task = SimpleNamespace(network=network)
    work = TokenizerTask.work(task, {"video": video})  # type: ignore[arg-type]
    with torch.device("meta"):  # where torch counts every attention kernel
        model = CosmosTokenizer(network)
    # 8 frames are left for the second window, which is padded to 9
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for window in [9] if frames == 9 else [17, 9]:
            model._decode_window(
                model._encode_window(torch.empty(2, 3, window, 32, 48, device="meta"))
            )
    assert work.forward_flops == counter.get_total_flops()
    assert (work.unit, work.amount) == ("frames", 2 * frames)
