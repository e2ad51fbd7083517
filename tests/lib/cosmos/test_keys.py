"""Names and shapes of the published checkpoints, and what follows from them."""

from __future__ import annotations

import ast
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from components.lib.contract import UserError
from components.lib.cosmos.conditions import Conditions
from components.lib.cosmos.describe import Clip, describe, find_model, render
from components.lib.cosmos.dit.network import DIT_PRESETS, DiT, configure_blocks
from components.lib.cosmos.flops import (
    EstimatedLayout,
    dit_attention_flops,
    dit_forward_flops,
    dit_memory,
    video_flops,
)
from components.lib.cosmos.shapes import parameter_count, state_shapes
from components.lib.cosmos.tokenizer.network import (
    TOKENIZER_PRESETS,
    CosmosTokenizer,
    TokenizerConfig,
)
from pipelines.cli import app

KEYS = Path(__file__).parents[2] / "data" / "keys"
PARAMETERS = {
    "7B": 7_236_192_256,
    "7B-V2W": 7_236_208_640,
    "14B": 14_267_149_312,
    "CV8x8x8": 105_653_696,
    "DV8x16x16": 110_898_294,
}
TENSORS = {"7B": 571, "7B-V2W": 571, "14B": 731, "CV8x8x8": 310, "DV8x16x16": 318}


def published(name: str) -> dict[str, tuple[int, ...]]:
    entries = []
    for line in (KEYS / f"{name}.txt").read_text().splitlines():
        key, shape = line.split(" ", 1)
        entries.append((key, ast.literal_eval(shape)))
    if name in TOKENIZER_PRESETS:
        return dict(
            itertools.chain.from_iterable(
                ((f"{key}.weight", shape), (f"{key}.bias", shape[:1])) for key, shape in entries
            )
        )
    result = {}
    for layers, group in itertools.groupby(entries, lambda entry: layer_count(entry[0])):
        lines = list(group)
        for layer in range(layers):
            for key, shape in lines:
                result[re.sub(r"\{.*?\}", str(layer), key)] = shape
    return result


def layer_count(key: str) -> int:
    span = re.search(r"\{0\.\.(\d+)\}", key)
    return int(span[1]) + 1 if span else 1


def on_meta(name: str) -> DiT | CosmosTokenizer:
    with torch.device("meta"):
        if name in TOKENIZER_PRESETS:
            return CosmosTokenizer(TOKENIZER_PRESETS[name])
        return DiT(DIT_PRESETS[name])


@pytest.mark.parametrize("name", PARAMETERS)
def test_modules_have_the_published_names_shapes_and_counts(name: str) -> None:
    model = on_meta(name)
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    found = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert found == published(name)
    assert list(state_shapes(model.config).items()) == list(published(name).items())
    assert len(found) == TENSORS[name]
    assert parameter_count(model.config) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_describe_on_the_command_line_needs_no_weights(name: str) -> None:
    done = CliRunner().invoke(app, ["describe", name, "--json", "--keys"])
    facts = json.loads(done.output)
    assert (facts["parameters"], facts["tensors"]) == (PARAMETERS[name], TENSORS[name])
    assert {key: tuple(shape) for key, shape in facts["keys"].items()} == published(name)
    text = CliRunner().invoke(app, ["describe", name, "--keys"]).output
    lines = [f"{key} {shape}" for key, shape in published(name).items()]
    assert text.splitlines()[-len(lines) :] == lines


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("nvidia/Cosmos-1.0-Diffusion-14B-Text2World", "14B"),
        ("Cosmos-1.0-Diffusion-7B-Video2World", "7B-V2W"),
        ("Cosmos-1.0-Tokenizer-DV8x16x16", "DV8x16x16"),
        ("cv8x8x8", "CV8x8x8"),
        ("7b-text2world", "7B"),
        ("tiny-cv", "tiny-cv"),
    ],
)
def test_published_names_are_found(model: str, name: str) -> None:
    assert find_model(model)[0] == name


def test_folders_are_found(tmp_path: Path) -> None:
    config = DIT_PRESETS["tiny"]
    value = {
        "format": "cosmos-pipelines/1",
        "family": "dit",
        "name": "mine",
        "config": config.model_dump(mode="json"),
    }
    (tmp_path / "config.json").write_text(json.dumps(value))
    assert find_model(str(tmp_path)) == ("mine", config)
    with pytest.raises(UserError, match="no model 'nonsense'"):
        find_model("nonsense")


def test_the_clip_of_the_published_models() -> None:
    facts = describe(*find_model("7B"))
    assert facts["latent_shape"] == [16, 16, 88, 160]
    assert facts["tokens"] == 56_320 and facts["token_features"] == 68
    assert describe(*find_model("7B-V2W"))["token_features"] == 72
    discrete = describe(*find_model("DV8x16x16"), Clip(frames=33, height=256, width=256))
    assert discrete["latent_shape"] == [6, 5, 16, 16] and discrete["codes"] == 64_000


@pytest.mark.parametrize(
    ("name", "tokens", "tera", "attention"),
    [
        ("7B", 56_320, 2209.4, 0.66),
        ("7B", 28_160, 741.0, 0.49),
        ("7B", 10_240, 185.4, 0.26),
        ("7B", 3_200, 47.8, 0.10),
        ("14B", 56_320, 3848, 0.61),
    ],
)
def test_flops_equal_the_planning_table(
    name: str, tokens: int, tera: float, attention: float
) -> None:
    flops = dit_forward_flops(DIT_PRESETS[name], tokens)
    assert flops / 1e12 == pytest.approx(tera, rel=1e-3)
    share = dit_attention_flops(DIT_PRESETS[name], tokens) / flops
    assert share == pytest.approx(attention, abs=0.006)


def test_dit_flops_equal_what_torch_counts_in_the_blocks() -> None:
    model = DiT(DIT_PRESETS["tiny"], seed=None)
    configure_blocks(model, attention="math")  # torch does not count its CPU attention kernel
    tokens = 3 * 4 * 6
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        conditions = Conditions(torch.zeros(1, 512, 64))
        model(torch.zeros(1, 16, 3, 8, 12), torch.zeros(1), conditions)
    blocks = sum(
        sum(counts.values())
        for name, counts in counter.get_flop_counts().items()
        if re.fullmatch(r"DiT\.blocks\.block\d+", name)
    )
    modulation = 4 * 3 * 2 * (128 * 16 + 16 * 3 * 128)
    assert blocks - modulation == dit_forward_flops(model.config, tokens)


@pytest.mark.parametrize(
    ("name", "clip", "encode", "decode"),
    [
        ("CV8x8x8", (121, 704, 1280), 35_663_705_538_560, 61_278_351_523_840),
        ("DV8x16x16", (121, 704, 1280), 22_504_997_560_320, 48_464_076_840_960),
        ("CV8x8x8", (249, 256, 256), 4_557_006_438_400, 8_476_144_173_056),
        ("DV8x16x16", (249, 256, 256), 3_305_581_428_736, 7_193_854_459_904),
    ],
)
def test_tokenizer_flops_equal_those_worked_out_by_convolution(
    name: str, clip: tuple[int, int, int], encode: int, decode: int
) -> None:
    """The table is the sum over each weight of its size times the positions it is applied at."""
    assert video_flops(TOKENIZER_PRESETS[name], *clip) == (encode, decode)


def test_an_image_costs_its_convolutions_and_attention() -> None:
    """Without levels that halve, every weight but those behind the Haar patch sees all positions,
    and attention over space is two products of all positions with all."""
    config = TokenizerConfig(channels=8, multipliers=(1,), spatial=4, temporal=4)
    positions = (32 // 4) ** 2
    weights = {"encoder": 0, "decoder": 0}
    for name, shape in state_shapes(config).items():
        if len(shape) == 5:
            part = "decoder" if name.startswith(("decoder", "post")) else "encoder"
            weights[part] += math.prod(shape)
    attention = 4 * 8 * positions * (positions + 1)  # over space, and over the one frame
    expected = tuple(2 * weights[part] * positions + attention for part in ("encoder", "decoder"))
    assert video_flops(config, 1, 32, 32) == expected


def test_memory_falls_with_sharding_and_checkpointing() -> None:
    config = DIT_PRESETS["7B"]

    def memory(**layout: Any) -> float:
        return dit_memory(config, 56_320, EstimatedLayout(**layout)).total / 2**30

    # a training step of these 28 blocks on two GPUs peaked at 90 GiB
    assert memory(gpus=2) == pytest.approx(90, rel=0.15)
    assert dit_memory(config, 56_320, EstimatedLayout(gpus=2)).state / 2**30 == pytest.approx(
        54, abs=1
    )
    # and of the first 8 on one H200, everything kept, at 107.6 GiB
    first = DIT_PRESETS["7B"].model_copy(update={"layers": 8})
    none = dit_memory(first, 56_320, EstimatedLayout(checkpointing="none")).total / 2**30
    assert none == pytest.approx(107.6, rel=0.1)
    # kept for each of 28 layers: its input, 0.43 GiB, and a tenth for all that is small
    full = dit_memory(config, 56_320, EstimatedLayout(checkpointing="full")).activations
    half = DIT_PRESETS["7B"].model_copy(update={"layers": 14})
    less = dit_memory(half, 56_320, EstimatedLayout(checkpointing="full")).activations
    assert (full - less) / 2**30 == pytest.approx(14 * 0.43 * 1.1, abs=0.05)
    sequence = EstimatedLayout(gpus=8, tp=8, sequence_parallel=True, checkpointing="full")
    assert dit_memory(config, 56_320, sequence).activations == pytest.approx(full / 8, rel=1e-6)
    assert memory(checkpointing="none") > memory(checkpointing="light") > memory()
    assert memory() > memory(checkpointing="full")
    assert memory(gpus=8) < memory(gpus=4) < memory(gpus=2)


@pytest.mark.parametrize(
    ("name", "clip", "words"),
    [
        ("7B", {"frames": 120}, "8k \\+ 1"),
        ("CV8x8x8", {"height": 700}, "multiples of 16"),
        ("7B", {"width": 2560}, "width"),
        ("CV8x8x8", {"height": 0}, "Use 1280 x 16"),
    ],
)
def test_impossible_clips_are_refused(name: str, clip: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        describe(*find_model(name), Clip(**clip))


def test_impossible_layouts_are_refused() -> None:
    with pytest.raises(ValueError, match="groups of 3"):
        EstimatedLayout(gpus=8, tp=3)
    with pytest.raises(UserError, match="do not divide"):
        describe(*find_model("7B"), layout=EstimatedLayout(gpus=3, tp=3))


def test_text_for_people_has_the_main_figures() -> None:
    text = render(
        describe(*find_model("7B"), layout=EstimatedLayout(gpus=8, tp=8, sequence_parallel=True))
    )
    for figure in ("7,236,192,256", "56,320", "2.209 PFLOP", "tensor parallel 8", "GiB"):
        assert figure in text
    assert "64,000" in render(describe(*find_model("DV8x16x16")))


def test_a_long_video_costs_the_sum_of_its_windows() -> None:
    name, settings = find_model("CV8x8x8")
    one = describe(name, settings, Clip(frames=121, height=64, width=64))
    two = describe(name, settings, Clip(frames=241, height=64, width=64))
    # 120 further frames are padded to a window of their own
    assert two["encode_flops"] == 2 * one["encode_flops"]
    assert two["latent_shape"][1] == 32
    assert math.prod(two["latent_shape"]) == 2 * math.prod(one["latent_shape"])
