"""The DiT as others use it: its inputs, its layouts, what it recomputes. Parity is elsewhere."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from components.lib.cosmos.conditions import Conditions
from components.lib.cosmos.dit.attention import AttentionBackend
from components.lib.cosmos.dit.block import Checkpointing
from components.lib.cosmos.dit.network import (
    DIT_PRESETS,
    DiT,
    DiTConfig,
    configure_blocks,
    initialise,
    tp_partial_gradient_names,
    tp_shard_dims,
)

SMALL = DIT_PRESETS["tiny"].model_copy(update={"layers": 2})
SIZE = (3, 4, 6)


def model(config: DiTConfig = SMALL) -> DiT:
    result = DiT(config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # a fresh model's blocks ignore the text: their gates need some weight
        for parameter in result.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return result


def inputs(batch: int = 2, config: DiTConfig = SMALL) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(batch, 16, *SIZE, generator=generator),
        "c_noise": torch.linspace(-1, 1, batch),
        "text": torch.randn(batch, 5, config.text_dim, generator=generator),
        "fps": torch.full((batch,), 24.0),
    }


def run(net: DiT, values: dict[str, torch.Tensor], **more: torch.Tensor) -> torch.Tensor:
    values = {**values, **more}
    return net(values["x"], values["c_noise"], Conditions.of_batch(values))


def test_output_is_shaped_like_the_latent() -> None:
    assert run(model(), inputs()).shape == inputs()["x"].shape


def test_every_sample_of_a_batch_stands_alone() -> None:
    """Other noise levels, texts and frame rates beside it do not change a sample."""
    net, values = model(), inputs(3)
    values["fps"] = torch.tensor([24.0, 12.0, 30.0])
    together = run(net, values)
    for i in range(3):
        alone = run(net, {name: value[i : i + 1] for name, value in values.items()})
        assert torch.allclose(together[i : i + 1], alone, atol=1e-5)


@pytest.mark.parametrize("name", ["c_noise", "text", "fps", "padding_mask"])
def test_every_condition_changes_the_output(name: str) -> None:
    net, values = model(), inputs()
    values["padding_mask"] = torch.zeros(2, 1, 32, 48)
    before = run(net, values)
    values[name] = values[name] + 0.5
    assert float((run(net, values) - before).detach().abs().max()) > 1e-4


def test_time_is_measured_in_seconds() -> None:
    """Half the frame rate is twice the time between frames: positions 0, 2, 4 of a longer clip."""
    from components.lib.cosmos.dit.rope import rotary_angles

    net = model()
    grid = (5, 1, 1)
    fast = rotary_angles(SMALL, net.pos_embedder.seq, grid, torch.tensor([24.0]), 1)
    slow = rotary_angles(SMALL, net.pos_embedder.seq, (3, 1, 1), torch.tensor([12.0]), 1)
    for one, two in zip(fast, slow, strict=True):
        assert torch.allclose(one[::2], two, atol=1e-6)


def test_no_padding_mask_means_nothing_is_padding() -> None:
    net, values = model(), inputs()
    assert torch.equal(run(net, values), run(net, values, padding_mask=torch.zeros(2, 1, 32, 48)))


def test_padding_mask_is_resized_to_the_nearest_latent_position() -> None:
    net, values = model(), inputs()
    pixels = torch.zeros(2, 1, 32, 48)
    pixels[..., :, 40:] = 1  # the last of six latent columns
    latent = torch.zeros(2, 1, 4, 6)
    latent[..., :, 5:] = 1
    same = run(net, values, padding_mask=latent)
    assert torch.equal(run(net, values, padding_mask=pixels), same)
    assert not torch.equal(run(net, values), same)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(1, 16, 3, 5, 6)}, "height 5 must be a multiple of 2"),
        ({"x": torch.zeros(1, 16, 3, 4, 242)}, "width 242 .* at most 240"),
        ({"x": torch.zeros(1, 16, 129, 4, 6)}, "frames 129"),
        ({"x": torch.zeros(1, 8, 3, 4, 6)}, "8 channels"),
        ({"shown_frames": torch.zeros(1, 3)}, "does not take frames that are shown"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change: dict[str, torch.Tensor], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        run(model(), inputs(1), **change)


def test_video2world_needs_its_frames() -> None:
    net = model(SMALL.model_copy(update={"condition_mask": True}))
    with pytest.raises(ValueError, match="needs frames that are shown"):
        run(net, inputs(1))
    shown = torch.zeros(1, 3)
    plain = run(net, inputs(1), shown_frames=shown)
    shown[:, 0] = 1
    assert not torch.equal(run(net, inputs(1), shown_frames=shown), plain)


def test_settings_without_a_3d_position_are_refused() -> None:
    with pytest.raises(ValueError, match="not divisible"):
        DiTConfig(hidden=100, heads=3)
    with pytest.raises(ValueError, match="at least 12"):
        DiTConfig(hidden=64, heads=8)


def test_equal_seeds_give_equal_models() -> None:
    one, two, other = DiT(SMALL), DiT(SMALL), DiT(SMALL, seed=1)
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])
    name = "x_embedder.proj.1.weight"
    assert not torch.equal(one.state_dict()[name], other.state_dict()[name])


def test_a_model_built_on_meta_becomes_the_same_model() -> None:
    with torch.device("meta"):
        late = DiT(SMALL)
    late.to_empty(device="cpu")
    initialise(late, 0)
    for name, value in DiT(SMALL).state_dict().items():
        assert torch.equal(value, late.state_dict()[name]), name


def test_initial_weights_follow_the_published_scheme() -> None:
    weights = DiT(DIT_PRESETS["tiny"]).state_dict()
    assert not weights["blocks.block0.blocks.1.adaLN_modulation.2.weight"].any()
    assert weights["final_layer.adaLN_modulation.2.weight"].any()
    assert bool((weights["blocks.block0.blocks.0.block.attn.to_q.1.weight"] == 1).all())
    for name in ("t_embedder.1.linear_1.weight", "extra_pos_embedder.pos_emb_t"):
        assert weights[name].std().item() == pytest.approx(0.02, rel=0.05)
    xavier = weights["blocks.block0.blocks.2.block.layer1.weight"]
    bound = (6 / (128 + 512)) ** 0.5
    assert xavier.abs().max().item() == pytest.approx(bound, rel=0.01)


@pytest.mark.parametrize("checkpointing", ["none", "light", "selective", "full"])
def test_what_checkpointing_recomputes(checkpointing: Checkpointing) -> None:
    """Attention runs once a block and part (2 x 2), with full again in the backward pass."""
    runs = {"attention": 0, "matrix": 0}

    class Count(TorchDispatchMode):
        def __torch_dispatch__(
            self,
            func: Callable[..., Any],
            types: object,
            args: tuple[Any, ...] = (),
            kwargs: Mapping[str, Any] | None = None,
        ) -> Any:
            name = str(func)
            if "_scaled_dot_product" in name and "backward" not in name:
                runs["attention"] += 1
            runs["matrix"] += name in ("aten.mm.default", "aten.addmm.default", "aten.bmm.default")
            return func(*args, **(kwargs or {}))

    net = model()
    configure_blocks(net, checkpointing=checkpointing)
    with Count():
        out = run(net, inputs())
        forward = dict(runs)
        out.square().mean().backward()
    assert forward["attention"] == 4
    assert runs["attention"] == (8 if checkpointing == "full" else 4)
    backward = runs["matrix"] - forward["matrix"]
    plain = 2 * forward["matrix"]
    # the matrix products before the blocks need no gradient of their inputs
    assert (backward > plain) == (checkpointing in ("selective", "full"))


@pytest.mark.parametrize("batch", [1, 2])
def test_light_checkpointing_repeats_no_matrix_product(batch: int) -> None:
    """But for those that are not worth their result's memory; also with one sample, whose gate is
    in the last weight of each part (then 2 in 14 would be repeated)."""
    spent: dict[Checkpointing, int] = {}
    kinds: list[Checkpointing] = ["none", "light"]
    for kind in kinds:
        net = model()
        configure_blocks(net, checkpointing=kind)
        out = run(net, inputs(batch))
        with FlopCounterMode(display=False) as counter:
            out.square().mean().backward()
        spent[kind] = counter.get_total_flops()
    assert spent["none"] < spent["light"] < 1.01 * spent["none"]


def test_inference_recomputes_nothing_and_needs_no_gradient() -> None:
    net = model()
    configure_blocks(net, checkpointing="full")
    with torch.no_grad():
        assert not run(net, inputs()).requires_grad


@pytest.mark.parametrize("backend", ["auto", "flash", "math"])
def test_attention_kernels_agree(backend: AttentionBackend) -> None:
    net, values = model(), inputs()
    expected = run(net, values)
    configure_blocks(net, attention=backend)
    assert torch.allclose(run(net, values), expected, atol=1e-5)


def test_weights_decide_the_dtype() -> None:
    net, values = model(), inputs()
    expected = run(net, values)
    half = run(net.bfloat16(), values)
    assert half.dtype == torch.bfloat16
    error = (half.float() - expected).abs().mean() / expected.abs().mean()
    assert float(error) < 0.05


def test_cut_dimensions_are_those_of_column_and_row_layers() -> None:
    net = model()
    cut = tp_shard_dims(net)
    block = "blocks.block0.blocks"
    assert [cut[f"{block}.1.block.attn.to_{x}.0.weight"] for x in "qkv"] == [0, 0, 0]
    assert cut[f"{block}.0.block.attn.to_out.0.weight"] == 1
    assert (cut[f"{block}.2.block.layer1.weight"], cut[f"{block}.2.block.layer2.weight"]) == (0, 1)
    assert len(cut) == 2 * (4 + 4 + 2)
    assert tp_partial_gradient_names(net) == []


def test_settings_need_no_torch() -> None:
    code = (
        "import sys; from components.lib.cosmos.dit.config import DIT_PRESETS;"
        "from components.lib.cosmos.tokenizer.config import TOKENIZER_PRESETS;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
