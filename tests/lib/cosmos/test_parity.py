"""Our networks against diffusers' implementations of the same models, with the same weights.

The oracle is independent code. Every test compares the forward pass and the gradient of every
parameter in fp32 on the CPU. Run as a script, this file is one rank of a tensor-parallel group
(see `test_tensor_parallel_equals_diffusers`).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers.models.transformers.transformer_cosmos as oracle
import pytest
import torch
import torch.distributed as dist
from diffusers import AutoencoderKLCosmos, CosmosTransformer3DModel
from safetensors.torch import load_file, save_file
from torch._dynamo.testing import CompileCounterWithBackend

from components.lib.cosmos.conditions import Conditions, over_latent
from components.lib.cosmos.dit.block import Checkpointing
from components.lib.cosmos.dit.network import (
    DIT_PRESETS,
    DiT,
    DiTConfig,
    configure_blocks,
    tp_partial_gradient_names,
    tp_shard_dims,
)
from components.lib.cosmos.tokenizer.network import (
    TOKENIZER_PRESETS,
    CosmosTokenizer,
    TokenizerConfig,
)

SMALL = DIT_PRESETS["tiny"].model_copy(
    update={"max_frames": 16, "max_height": 48, "max_width": 40, "layers": 2}
)
CONFIGS = {
    "7B-like": SMALL,
    "14B-like": SMALL.model_copy(
        update={"hidden": 160, "heads": 4, "ffn": 320, "rope_ratio": (2.0, 2.0, 2.0), "layers": 3}
    ),
    "V2W-like": SMALL.model_copy(update={"condition_mask": True, "text_dim": 48}),
}
# (frames, height, width) of the latent; the second has 45 tokens, which 2 does not divide
SIZES = [(3, 8, 12), (5, 6, 6), (1, 4, 10)]


def diffusers_name(name: str) -> str:
    rules = [
        (r"^x_embedder\.proj\.1", "patch_embed.proj"),
        (r"^extra_pos_embedder", "learnable_pos_embed"),
        (r"^t_embedder\.1", "time_embed.t_embedder"),
        (r"^affline_norm", "time_embed.norm"),
        (r"^final_layer\.linear", "proj_out"),
        (r"^final_layer\.adaLN_modulation\.(\d)", r"norm_out.linear_\1"),
        (r"^blocks\.block(\d+)\.blocks\.0", r"transformer_blocks.\1.#1"),
        (r"^blocks\.block(\d+)\.blocks\.1", r"transformer_blocks.\1.#2"),
        (r"^blocks\.block(\d+)\.blocks\.2", r"transformer_blocks.\1.#3"),
        (r"#(\d)\.adaLN_modulation\.(\d)", r"norm\1.linear_\2"),
        (r"#(\d)\.block\.attn\.to_([qk])\.1", r"attn\1.norm_\2"),
        (r"#(\d)\.block\.attn\.to_out\.0", r"attn\1.to_out.0"),
        (r"#(\d)\.block\.attn\.to_([qkv])\.0", r"attn\1.to_\2"),
        (r"#3\.block\.layer1", "ff.net.0.proj"),
        (r"#3\.block\.layer2", "ff.net.2"),
    ]
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name


def make_oracle(config: DiTConfig) -> CosmosTransformer3DModel:
    # the oracle's one use of torchvision is a nearest-neighbour resize of the padding mask
    resize = lambda mask, size, interpolation: torch.nn.functional.interpolate(mask, size)  # noqa: E731
    oracle.transforms = SimpleNamespace(
        functional=SimpleNamespace(resize=resize),
        InterpolationMode=SimpleNamespace(NEAREST="nearest"),
    )
    return CosmosTransformer3DModel(
        in_channels=config.in_channels - 1,
        out_channels=config.latent_channels,
        num_attention_heads=config.heads,
        attention_head_dim=config.head_dim,
        num_layers=config.layers,
        mlp_ratio=config.ffn / config.hidden,
        text_embed_dim=config.text_dim,
        adaln_lora_dim=config.adaln_rank,
        max_size=(config.max_frames, config.max_height, config.max_width),
        rope_scale=config.rope_ratio,
    )


def random_weights(model: torch.nn.Module, seed: int = 0) -> None:
    """All parameters random, the norms too: equal outputs then mean equal use of each of them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan = parameter[0].numel()
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan**-0.5)
            if parameter.dim() == 1:
                parameter.add_(1.0)


def dit_inputs(
    config: DiTConfig, size: tuple[int, int, int], batch: int = 2
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    randn = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    frames, height, width = size
    padding = torch.zeros(batch, 1, height * 8, width * 8)
    padding[:, :, :, -8:] = 1.0  # the right-most latent column is padding
    inputs = {
        "x": randn(batch, config.latent_channels, *size),
        "c_noise": torch.tensor([-0.7, 0.4])[:batch],
        "text": randn(batch, 7, config.text_dim),
        "fps": torch.full((batch,), 30.0),
        "padding_mask": padding,
        "target": randn(batch, config.latent_channels, *size),
    }
    if config.condition_mask:
        inputs["shown_frames"] = (randn(batch, frames) > 0).float()
    return inputs


def run_oracle(model: CosmosTransformer3DModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    shown = inputs.get("shown_frames")
    mask = None if shown is None else over_latent(shown, inputs["x"])
    # the oracle repeats the mask over the batch, so it takes the mask of one sample
    out = model(
        inputs["x"],
        inputs["c_noise"],
        inputs["text"],
        fps=30,
        condition_mask=mask,
        padding_mask=inputs["padding_mask"][:1],
    ).sample
    ((out - inputs["target"]) ** 2).mean().backward()
    return out.detach()


def run_ours(model: DiT, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    out = model(inputs["x"], inputs["c_noise"], Conditions.of_batch(inputs))
    ((out - inputs["target"]) ** 2).mean().backward()
    return out.detach()


def worst_difference(
    config: DiTConfig,
    size: tuple[int, int, int],
    *,
    sequence_parallel: bool = False,
    checkpointing: Checkpointing = "none",
    compiled: bool = False,
) -> dict[str, Any]:
    """Largest difference of the output and of any gradient, absolute and against its own size."""
    reference = make_oracle(config)
    ours = DiT(config, sequence_parallel=sequence_parallel)
    graphs = CompileCounterWithBackend("aot_eager")
    configure_blocks(
        ours,
        checkpointing=checkpointing,
        attention="math",
        compile_blocks=compiled,
        compiler=graphs,
    )
    theirs = dict(reference.named_parameters())
    random_weights(reference)
    parallel = ours.parallel
    names = {name: diffusers_name(name) for name, _ in ours.named_parameters()}
    assert sorted(names.values()) == sorted(theirs)

    dims = tp_shard_dims(ours)

    def cut(name: str, tensor: torch.Tensor) -> torch.Tensor:
        dim = dims.get(name)
        return tensor if dim is None else tensor.chunk(parallel.size, dim)[parallel.rank]

    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(cut(name, theirs[names[name]]))
    inputs = dit_inputs(config, size)
    expected, got = run_oracle(reference, inputs), run_ours(ours, inputs)
    partial = set(tp_partial_gradient_names(ours))
    gradient_worst, relative_worst, where = 0.0, 0.0, ""
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        gradient = parameter.grad
        if name in partial:
            dist.all_reduce(gradient)
        full = theirs[names[name]].grad
        assert full is not None
        difference = float((gradient - cut(name, full)).abs().max())
        gradient_worst = max(gradient_worst, difference)
        relative = difference / float(full.abs().max())
        if relative > relative_worst:
            relative_worst, where = relative, name
    return {
        "forward": float((got - expected).abs().max()),
        "gradient": gradient_worst,
        "relative": relative_worst,
        "where": where,
        "graphs": graphs.frame_count,
    }


def assert_equal(result: dict[str, Any]) -> None:
    assert result["forward"] < 1e-4, result
    assert result["gradient"] < 1e-4, result
    # the loss is a mean, so gradients are small: the absolute bound alone would be too lax
    assert result["relative"] < 1e-4, result


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CONFIGS)
def test_dit_equals_diffusers(name: str, size: tuple[int, int, int]) -> None:
    assert_equal(worst_difference(CONFIGS[name], size))


@pytest.mark.parametrize("checkpointing", ["light", "selective", "full"])
def test_activation_checkpointing_changes_nothing(checkpointing: Checkpointing) -> None:
    assert_equal(worst_difference(SMALL, (3, 8, 12), checkpointing=checkpointing))


@pytest.mark.parametrize("checkpointing", ["none", "light", "selective", "full"])
def test_all_blocks_together_compile_to_one_graph(checkpointing: Checkpointing) -> None:
    torch._dynamo.reset()
    config = SMALL.model_copy(update={"layers": 10})  # more than the recompilation limit
    result = worst_difference(config, (3, 8, 12), checkpointing=checkpointing, compiled=True)
    assert_equal(result)
    assert result["graphs"] == 1


def test_blocks_that_run_in_several_ways_take_clips_of_several_sizes() -> None:
    """A memory plan mixes checkpointing, training validates, and fleets' clips differ in size."""
    torch._dynamo.reset()
    kinds: list[Checkpointing] = ["full", "selective", "light", "none"]
    config = SMALL.model_copy(update={"layers": len(kinds)})
    eager, compiled = DiT(config, seed=3), DiT(config, seed=3)
    configure_blocks(compiled, checkpointing=kinds, compile_blocks=True, compiler="aot_eager")
    generator = torch.Generator().manual_seed(4)
    for batch, size in product((1, 2, 3), ((1, 4, 4), (2, 4, 4), (3, 8, 12), (1, 4, 10))):
        x = torch.randn(batch, config.latent_channels, *size, generator=generator)
        text = torch.randn(batch, 5, config.text_dim, generator=generator)
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients):
                noise = torch.zeros(batch)
                expected, found = eager(x, noise, text), compiled(x, noise, text)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            if gradients:
                found.square().mean().backward()
                expected.square().mean().backward()
    for (name, mine), plain in zip(compiled.named_parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, plain.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_tensor_parallel_equals_diffusers(tmp_path: Path) -> None:
    """TP 2 over gloo, with and without sequence parallel, token counts odd and even."""
    save_file(DiT(SMALL).state_dict(), tmp_path / "fresh.safetensors")
    ranks = []
    for rank in range(2):
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, str(tmp_path / f"{rank}.json"), str(rank)]
        ranks.append(subprocess.Popen(command, env=env))
    assert [process.wait() for process in ranks] == [0, 0]
    for rank in range(2):
        cases = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(cases) == 8
        for case in cases:
            assert_equal(case)
            assert case["graphs"] == (1 if case["model"] == "V2W-like" else 0), case


def one_rank(report: Path, rank: int) -> None:
    from megatron.core import parallel_state

    # A file and not a port: ports chosen beforehand may be taken by then.
    rendezvous = f"file://{report.parent}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=2)
    torch.set_num_threads(1)
    # a fresh model is the same model in every layout
    whole = load_file(report.parent / "fresh.safetensors")
    fresh = DiT(SMALL)
    dims = tp_shard_dims(fresh)
    for name, value in fresh.state_dict().items():
        dim = dims.get(name)
        wanted = whole[name] if dim is None else whole[name].chunk(2, dim)[dist.get_rank()]
        assert torch.equal(value, wanted), name
    cases = []
    kinds: list[tuple[str, tuple[int, int, int], Checkpointing]] = [
        ("7B-like", (3, 8, 12), "none"),
        ("7B-like", (5, 6, 6), "light"),
        ("14B-like", (1, 4, 10), "selective"),
        ("V2W-like", (5, 6, 6), "light"),
    ]
    for name, size, checkpointing in kinds:
        for sequence in (False, True):
            torch._dynamo.reset()
            result = worst_difference(
                CONFIGS[name],
                size,
                sequence_parallel=sequence,
                checkpointing=checkpointing,
                compiled=name == "V2W-like",
            )
            cases.append({"model": name, "size": size, "sequence": sequence, **result})
    report.write_text(json.dumps(cases))
    dist.destroy_process_group()


def tokenizer_name(name: str) -> str:
    """Published tokenizer name -> diffusers name."""
    rules = [
        (r"\.conv3d\.", "."),
        (r"(conv_in|conv_out|conv[12])\.0\.", r"\1.conv_s."),
        (r"(conv_in|conv_out|conv[12])\.1\.", r"\1.conv_t."),
        (r"nin_shortcut", "conv_shortcut"),
        (r"\.down\.(\d)\.block", r".down_blocks.\1.resnets"),
        (r"\.down\.(\d)\.downsample", r".down_blocks.\1.downsamplers.0"),
        (r"\.mid\.block_1", ".mid_block.resnets.0"),
        (r"\.mid\.block_2", ".mid_block.resnets.1"),
        (r"\.mid\.attn_1\.0", ".mid_block.attentions.0"),
        (r"\.mid\.attn_1\.1", ".mid_block.temp_attentions.0"),
        (r"(attentions\.0)\.([qkv])\.", r"\1.to_\2."),
        (r"proj_out", "to_out.0"),
    ]
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    up = re.match(r"decoder\.up\.(\d)\.(.*)", name)
    if up:
        rest = re.sub(r"^block", "resnets", up[2])
        rest = re.sub(r"^upsample", "upsamplers.0", rest)
        name = f"decoder.up_blocks.{2 - int(up[1])}.{rest}"
    return name


@pytest.mark.parametrize("shape", [(2, 9, 32, 48), (1, 17, 48, 32), (1, 1, 64, 32)])
def test_continuous_tokenizer_equals_diffusers(shape: tuple[int, int, int, int]) -> None:
    config = TOKENIZER_PRESETS["tiny-cv"]
    check_tokenizer(config, shape)


def test_tokenizer_with_other_widths_equals_diffusers() -> None:
    check_tokenizer(TokenizerConfig(channels=8, multipliers=(1, 2, 3)), (1, 9, 32, 32))


def check_tokenizer(config: TokenizerConfig, shape: tuple[int, int, int, int]) -> None:
    reference = AutoencoderKLCosmos(
        encoder_block_out_channels=config.encoder_channels,
        decode_block_out_channels=config.decoder_channels,
        num_layers=config.res_blocks,
        latent_channels=config.latent_channels,
    )
    ours = CosmosTokenizer(config)
    random_weights(ours)
    theirs = dict(reference.named_parameters())
    names = {name: tokenizer_name(name) for name, _ in ours.named_parameters()}
    assert sorted(names.values()) == sorted(theirs)
    reference.load_state_dict({names[name]: value for name, value in ours.state_dict().items()})

    batch, frames, height, width = shape
    generator = torch.Generator().manual_seed(2)
    video = torch.rand(batch, 3, frames, height, width, generator=generator) * 2 - 1
    expected_latent = reference.encode(video).latent_dist.mode()
    latent = ours.encode(video)
    assert float((latent - expected_latent).detach().abs().max()) < 1e-4
    expected, got = reference.decode(expected_latent).sample, ours.decode(latent)
    assert got.shape == video.shape
    assert float((got - expected).detach().abs().max()) < 1e-4
    expected.sub(video).square().mean().backward()
    got.sub(video).square().mean().backward()
    for name, parameter in ours.named_parameters():
        wanted = theirs[names[name]].grad
        assert parameter.grad is not None and wanted is not None
        difference = float((parameter.grad - wanted).abs().max())
        assert difference < 1e-4, name
        # the bias of a key has no gradient but rounding: softmax does not see it
        assert difference < 1e-3 * float(wanted.abs().max()) + 1e-6, name


if __name__ == "__main__":
    one_rank(Path(sys.argv[1]), int(sys.argv[2]))
