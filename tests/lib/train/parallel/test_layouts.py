"""Every parallel layout trains alike, and like an independent loop over diffusers' model.

On gloo ranks and in fp32 unless COSMOS_TEST_GPUS or COSMOS_TEST_PRECISION says otherwise: see
`Hardware` in conftest. Layouts of more ranks than there are GPUs are skipped there.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from components.lib.cosmos.compiler import has_compiler
from components.lib.cosmos.dit.config import DiTConfig
from tests.lib.train.conftest import Hardware

pytestmark = pytest.mark.layouts

TP = "trainer.strategy.tensor_model_parallel_size="
SP = "trainer.strategy.sequence_parallel=true"
HSDP = "trainer.strategy.data_parallel_replicas=2"
LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "1": (1, []),
    "1, batch of 4": (1, ["data.micro_batch_size=4"]),
    "1, full recompute": (1, ["trainer.recompute=full"]),
    "1, selective recompute": (1, ["trainer.recompute=selective"]),
    "DP2": (2, []),
    "HSDP 2x2": (4, [HSDP]),
    "TP2": (2, [TP + "2"]),
    "TP2 SP": (2, [TP + "2", SP]),
    "TP2 SP, full recompute": (2, [TP + "2", SP, "trainer.recompute=full"]),
    "TP2 x DP2": (4, [TP + "2"]),
    "TP2 SP x DP2": (4, [TP + "2", SP]),
}
LIGHTNING = "trainer.engine=lightning"
LIGHTNING_LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "Lightning on TP2": (2, [LIGHTNING, TP + "2"])
}
RESUMED: dict[str, tuple[int, list[str]]] = {
    "on 1": (1, []),
    "on DP2": (2, []),
    "on TP4": (4, [TP + "4"]),
    "on DP2 with Lightning": (2, [LIGHTNING]),
}
LORA = ["model.lora.rank=4", "optim.config.lr=1e-2"]
LORA_LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "LoRA on 1": (1, LORA),
    "LoRA on TP2 SP": (2, [*LORA, TP + "2", SP]),
    "LoRA on TP2 x DP2": (4, [*LORA, TP + "2"]),
}
LORA_RESUMED = "LoRA of TP2 SP on 1"
COMPILE = "trainer.compile=true"
COMPILED = "DP2, compiled"
#: Without validation, whose graph is another and would have to be compiled as well.
COMPILED_LIGHT = [
    COMPILE,
    "trainer.recompute=light",
    "trainer.activations=host",
    "trainer.val_check_interval=0",
]
SIZED_LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "sizes on 1": (1, []),
    "sizes on DP2": (2, []),
    "sizes on TP2 SP x DP2": (4, [TP + "2", SP]),
}
#: Each size may be compiled anew, which takes half a minute: two sizes are several.
TWO_SIZES: dict[str, tuple[int, list[str]]] = {
    "two sizes on 1": (1, []),
    "two sizes on DP2, compiled": (2, COMPILED_LIGHT),
    "two sizes on TP2 SP, compiled": (2, [*COMPILED_LIGHT, TP + "2", SP]),
}
DV = ["--factory", "tiny_tokenizer_dv"]
TOKENIZER_LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "CV on 1": (1, []),
    "CV on DP2": (2, []),
    "DV on 1": (1, DV),
    "DV on DP2": (2, DV),
    "CV sharded over 2": (2, ["trainer.strategy.data_parallel_replicas=1"]),
}
TOKENIZER_RESUMED = "CV of DP2 on 1"


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory,
    trainings: Callable[..., None],
    diffusion_arguments: list[str],
    tokenizer_arguments: list[str],
    sized_folder: Path,
    two_sizes_folder: Path,
    hardware: Hardware,
) -> dict[str, Path]:
    """Folder of each layout's run; also a run saved at TP2 x DP2 and continued elsewhere."""
    root = tmp_path_factory.mktemp("layouts")
    everything = [*LAYOUTS, *LORA_LAYOUTS, *TOKENIZER_LAYOUTS, *LIGHTNING_LAYOUTS, COMPILED]
    everything += [*SIZED_LAYOUTS, *TWO_SIZES]
    folders = {name: root / f"layout-{number}" for number, name in enumerate(everything)}
    scenarios: list[dict[str, Any]] = [
        {"world": world, "folder": str(folders[name]), "arguments": diffusion_arguments + extra}
        for name, (world, extra) in {**LAYOUTS, **LORA_LAYOUTS}.items()
    ]
    scenarios += [
        {
            "world": world,
            "folder": str(folders[name]),
            "arguments": [*diffusion_arguments, f"data.path={data}", *extra],
            "env": {"TORCHINDUCTOR_CACHE_DIR": f"{folders[name]}-compiled"},
        }
        for data, layouts in ((sized_folder, SIZED_LAYOUTS), (two_sizes_folder, TWO_SIZES))
        for name, (world, extra) in layouts.items()
    ]
    # On CPUs some operators of the tokenizers do not exist in bf16.
    tokenizers = TOKENIZER_LAYOUTS if hardware.gpus or not hardware.bf16 else {}
    scenarios += [
        {"world": world, "folder": str(folders[name]), "arguments": tokenizer_arguments + extra}
        for name, (world, extra) in tokenizers.items()
    ]
    if tokenizers:
        cut = [*tokenizer_arguments, "trainer.max_steps=2"]
        folders[TOKENIZER_RESUMED] = root / "tokenizer-resumed"
        scenarios.append({"world": 2, "folder": f"{root}/tokenizer-saved", "arguments": cut})
        scenarios.append(
            {
                "world": 1,
                "folder": str(folders[TOKENIZER_RESUMED]),
                "copy_of": f"{root}/tokenizer-saved",
                "arguments": tokenizer_arguments,
            }
        )
    # The checkpoint that is continued elsewhere comes from as many ranks as there can be.
    saved = root / "saved"
    origin = (4, [TP + "2"]) if hardware.fits(4) else (2, [TP + "2", SP])
    cut = [*diffusion_arguments, "trainer.max_steps=2"]
    scenarios.append({"world": origin[0], "folder": str(saved), "arguments": cut + origin[1]})
    low_rank = [*cut, *LORA, TP + "2", SP]
    scenarios.append({"world": 2, "folder": f"{saved}-lora", "arguments": low_rank})
    folders[LORA_RESUMED] = root / "lora-resumed"
    scenarios.append(
        {
            "world": 1,
            "folder": str(folders[LORA_RESUMED]),
            "copy_of": f"{saved}-lora",
            "arguments": diffusion_arguments + LORA,
        }
    )
    scenarios += [
        {"world": world, "folder": str(folders[name]), "arguments": diffusion_arguments + extra}
        for name, (world, extra) in LIGHTNING_LAYOUTS.items()
    ]
    selective = [COMPILE, "trainer.recompute=selective", "trainer.val_check_interval=0"]
    scenarios.append(
        {
            "world": 2,
            "folder": str(folders[COMPILED]),
            "arguments": [*diffusion_arguments, *selective],
            "env": {"TORCHINDUCTOR_CACHE_DIR": f"{folders[COMPILED]}-compiled"},
        }
    )
    for name, (world, extra) in RESUMED.items():
        folders[name] = root / name.replace(" ", "-")
        scenarios.append(
            {
                "world": world,
                "folder": str(folders[name]),
                "copy_of": str(saved),
                "arguments": diffusion_arguments + extra,
            }
        )
    scenarios = [
        {**scenario, "arguments": scenario["arguments"] + hardware.arguments}
        for scenario in scenarios
        if hardware.fits(scenario["world"]) and possible(scenario["arguments"])
    ]
    trainings(root, scenarios)
    made = {scenario["folder"] for scenario in scenarios}
    return {name: folder for name, folder in folders.items() if str(folder) in made}


def possible(arguments: list[str]) -> bool:
    """Whether what a training needs beyond the core's packages is here."""
    found = {
        LIGHTNING: importlib.util.find_spec("nemo") is not None,
        "crop_height": importlib.util.find_spec("av") is not None,
        COMPILE: has_compiler("cpu"),
    }
    return all(
        here for word, here in found.items() if any(word in argument for argument in arguments)
    )


def was_compiled(run: Path) -> bool:
    """Whether the compiler has left its work for this run."""
    return any(Path(f"{run}-compiled").rglob("*.py"))


def run_of(runs: dict[str, Path], name: str) -> Path:
    """The folder of a run, or a skip where it could not be made."""
    if name not in runs:
        pytest.skip(f"'{name}' needs more GPUs, or a package or compiler that is not here")
    return runs[name]


@pytest.mark.parametrize("layout", [*list(LAYOUTS)[1:], *LIGHTNING_LAYOUTS])
def test_losses_and_gradient_norms_equal_one_process(
    layout: str,
    runs: dict[str, Path],
    metrics: Callable[..., list[dict[str, float]]],
    hardware: Hardware,
) -> None:
    expected, found = metrics(runs["1"]), metrics(run_of(runs, layout))
    assert len(found) == 4
    for name in ("loss", "grad_norm"):
        assert [step[name] for step in found] == pytest.approx(
            [step[name] for step in expected], rel=hardware.tolerance(name)
        )
    held_out = metrics(runs["1"], "validation")[-1]["loss"]
    assert metrics(runs[layout], "validation")[-1]["loss"] == pytest.approx(
        held_out, rel=hardware.loss
    )


@pytest.mark.parametrize(
    ("one", "layout"),
    [
        *(("sizes on 1", layout) for layout in list(SIZED_LAYOUTS)[1:]),
        *(("two sizes on 1", layout) for layout in list(TWO_SIZES)[1:]),
    ],
)
def test_clips_of_several_sizes_train_alike_in_every_layout(
    one: str,
    layout: str,
    runs: dict[str, Path],
    metrics: Callable[..., list[dict[str, float]]],
    hardware: Hardware,
) -> None:
    """Ranks then have different sizes in the same step, and all of them count as work."""
    expected, found = metrics(runs[one]), metrics(run_of(runs, layout))
    assert len(found) == 4
    assert was_compiled(runs[layout]) == ("compiled" in layout)
    for name in ("loss", "grad_norm"):
        assert [step[name] for step in found] == pytest.approx(
            [step[name] for step in expected], rel=hardware.tolerance(name)
        )
    work = [
        [step["tokens_per_second"] * step["step_seconds"] for step in steps]
        for steps in (found, expected)
    ]
    assert work[0] == pytest.approx(work[1], rel=1e-6)
    assert min(work[0]) < max(work[0])


@pytest.mark.parametrize("layout", ["TP2 SP x DP2", "HSDP 2x2"])
def test_exported_weights_equal_one_process(
    layout: str, runs: dict[str, Path], hardware: Hardware
) -> None:
    from components.lib.cosmos.model_folder import load_state_dict

    expected = load_state_dict(runs["1"] / "run" / "model")
    found = load_state_dict(run_of(runs, layout) / "run" / "model")
    assert expected.keys() == found.keys()
    # Adam's first steps have the size of lr (1e-3) whatever the gradient's: in bf16, where
    # rounding may turn the sign of a small gradient, four steps apart is what can be.
    near: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5}
    if hardware.bf16:
        near = {"rtol": 1e-2, "atol": 8e-3}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **near)


@pytest.mark.parametrize(("layout", "ranks"), [("TP2", 2), ("DP2", 2), ("TP2 SP x DP2", 4)])
def test_weights_and_optimizer_state_are_shared_out(
    layout: str, ranks: int, runs: dict[str, Path]
) -> None:
    """Also those of parameters that every tensor-parallel rank needs whole."""
    held = [
        json.loads((run_of(runs, name) / "run" / "settings.json").read_text())[
            "state_bytes_of_rank_0"
        ]
        for name in ("1", layout)
    ]
    assert held[1] < 1.05 * held[0] / ranks


@pytest.mark.parametrize("layout", ["LoRA on TP2 SP", "LoRA on TP2 x DP2"])
def test_low_rank_updates_train_alike_in_every_layout(
    layout: str,
    runs: dict[str, Path],
    metrics: Callable[..., list[dict[str, float]]],
    hardware: Hardware,
) -> None:
    expected, found = metrics(runs["LoRA on 1"]), metrics(run_of(runs, layout))
    assert found[0]["loss"] == pytest.approx(metrics(runs["1"])[0]["loss"], rel=hardware.loss)
    for name in ("loss", "grad_norm"):
        assert [step[name] for step in found] == pytest.approx(
            [step[name] for step in expected], rel=hardware.tolerance(name)
        )
    assert expected[-1]["loss"] != pytest.approx(metrics(runs["1"])[-1]["loss"], rel=1e-4)


def test_low_rank_updates_are_merged_into_the_exported_model(
    runs: dict[str, Path], dit_folder: Path, hardware: Hardware
) -> None:
    from components.lib.cosmos.model_folder import load_dit, load_state_dict

    base = load_state_dict(dit_folder)
    if hardware.bf16:
        pytest.skip("a bf16 training exports bf16 weights, which hide the update's rank")
    merged = load_dit(runs["LoRA on TP2 SP"] / "run" / "model").state_dict()
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {
        name for name in base if (".to_" in name and name.endswith("0.weight")) or ".layer" in name
    }
    for name in changed:
        rank = torch.linalg.matrix_rank(merged[name] - base[name], rtol=1e-3)
        assert 1 <= rank <= 4, name


def test_a_low_rank_checkpoint_continues_in_another_layout(
    runs: dict[str, Path], metrics: Callable[..., list[dict[str, float]]], hardware: Hardware
) -> None:
    expected, found = metrics(runs["LoRA on 1"]), metrics(run_of(runs, LORA_RESUMED))
    assert [step["step"] for step in found] == [1, 2, 3, 4]
    for name in ("loss", "grad_norm", "lr"):
        assert [step[name] for step in found] == pytest.approx(
            [step[name] for step in expected], rel=hardware.tolerance(name)
        )


def test_compiled_blocks_train_as_the_others_do(
    runs: dict[str, Path], metrics: Callable[..., list[dict[str, float]]], hardware: Hardware
) -> None:
    found = metrics(run_of(runs, COMPILED))
    assert was_compiled(runs[COMPILED])
    for name in ("loss", "grad_norm"):
        assert [step[name] for step in found] == pytest.approx(
            [step[name] for step in metrics(runs["DP2"])], rel=hardware.tolerance(name)
        )


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("CV", "CV on DP2"),
        ("DV", "DV on DP2"),
        ("CV", "CV sharded over 2"),
        ("CV", TOKENIZER_RESUMED),
    ],
)
def test_tokenizers_train_alike_in_every_layout(
    family: str,
    layout: str,
    runs: dict[str, Path],
    metrics: Callable[..., list[dict[str, float]]],
    hardware: Hardware,
) -> None:
    one, two = run_of(runs, f"{family} on 1"), run_of(runs, layout)
    assert [step["step"] for step in metrics(two)] == [1, 2, 3]
    for name in ("loss", "grad_norm"):
        expected = [step[name] for step in metrics(one)]
        found = [step[name] for step in metrics(two)]
        assert found == pytest.approx(expected, rel=hardware.tolerance(name))
    for name in ("loss", "psnr", "ssim"):
        assert metrics(two, "validation")[-1][name] == pytest.approx(
            metrics(one, "validation")[-1][name], rel=1e-2 if hardware.bf16 else 1e-4
        )


@pytest.mark.parametrize("resumed", RESUMED)
def test_a_checkpoint_of_tp2_x_dp2_continues_in_another_layout(
    resumed: str,
    runs: dict[str, Path],
    metrics: Callable[..., list[dict[str, float]]],
    hardware: Hardware,
) -> None:
    expected, found = metrics(runs["1"]), metrics(run_of(runs, resumed))
    assert [step["step"] for step in found] == [1, 2, 3, 4]
    for name in ("loss", "grad_norm", "lr"):
        assert [step[name] for step in found] == pytest.approx(
            [step[name] for step in expected], rel=hardware.tolerance(name)
        )


def test_losses_equal_a_plain_loop_over_diffusers(
    runs: dict[str, Path],
    metrics: Callable[..., list[dict[str, float]]],
    dit_folder: Path,
    latent_folder: Path,
    prompt_folder: Path,
    small_dit: DiTConfig,
    hardware: Hardware,
) -> None:
    """The oracle: diffusers' network, the published formulas, torch's AdamW and clipping."""
    model = diffusers_model(small_dit, dit_folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    sigma_data, losses, norms = 0.5, [], []
    for step in range(4):
        optimizer.zero_grad()
        total = 0.0
        for sample in samples_of_step(step, latent_folder, prompt_folder):
            clean, sigma = sigma_data * sample.latent.float(), sample.sigma
            x = clean + sigma * sample.noise
            scale = (sigma**2 + sigma_data**2) ** -0.5
            raw = model(
                (scale * x)[None],
                (0.25 * sigma.log())[None],
                sample.text.float()[None],
                fps=24,
                padding_mask=torch.zeros(1, 1, 48, 48),
            ).sample[0]
            denoised = sigma_data**2 * scale**2 * x + sigma * sigma_data * scale * raw
            weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
            loss = (weight * (clean - denoised) ** 2).mean() / 4
            loss.backward()
            total += loss.item()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        optimizer.step()
        losses.append(total)
    found = metrics(runs["1"])
    # The oracle is fp32; the trainings' own bf16 rounding comes on top of the layouts'.
    scale = 2 if hardware.bf16 else 1
    for name, expected in (("loss", losses), ("grad_norm", norms)):
        near = pytest.approx(expected, rel=scale * hardware.tolerance(name))
        assert [step[name] for step in found] == near


def samples_of_step(step: int, latents: Path, prompts: Path) -> list[SimpleNamespace]:
    """The four samples of an optimizer step with their draws, read by the tar in order."""
    from components.lib.shards.latents import parse_latent
    from components.lib.shards.prompts import PromptSource
    from components.lib.shards.tar import IndexedShard
    from components.lib.train.data.noise import SampleNoise
    from components.lib.train.data.sampler import Sampler
    from components.lib.train.settings.config import DiffusionModel

    tars = [IndexedShard(path) for path in sorted(latents.glob("train-*.tar"))]
    order = Sampler([len(tar.samples) for tar in tars], seed=1234, window=8, shuffle=True)
    found = []
    for number in range(4 * step, 4 * step + 4):
        shard, index = order.at(number)
        latent, info, _ = parse_latent(tars[shard].read(index)[1])
        draws = SampleNoise(number, 1, DiffusionModel(), latent.shape)
        assert info.prompt_sha256 is not None
        text = PromptSource(None, prompts, None).embedding(info.prompt_sha256)
        found.append(
            SimpleNamespace(
                latent=latent,
                text=text * draws.keep_text,
                sigma=draws.sigma,
                noise=draws.noise,
            )
        )
    return found


def diffusers_model(config: DiTConfig, folder: Path) -> torch.nn.Module:
    """diffusers' transformer with the folder's weights."""
    import diffusers.models.transformers.transformer_cosmos as cosmos

    from components.lib.cosmos.formats.names import dit_to_diffusers
    from components.lib.cosmos.model_folder import load_state_dict

    # Its one use of torchvision, a nearest resize of the padding mask.
    cosmos.transforms = SimpleNamespace(
        functional=SimpleNamespace(
            resize=lambda mask, size, interpolation: torch.nn.functional.interpolate(mask, size)
        ),
        InterpolationMode=SimpleNamespace(NEAREST="nearest"),
    )
    model = cosmos.CosmosTransformer3DModel(
        in_channels=16,
        out_channels=16,
        num_attention_heads=config.heads,
        attention_head_dim=config.head_dim,
        num_layers=config.layers,
        mlp_ratio=config.ffn / config.hidden,
        text_embed_dim=config.text_dim,
        adaln_lora_dim=config.adaln_rank,
        max_size=(config.max_frames, config.max_height, config.max_width),
        rope_scale=config.rope_ratio,
    )
    weights = {
        renamed: value
        for name, value in load_state_dict(folder).items()
        if (renamed := dit_to_diffusers(name)) is not None
    }
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and not [name for name in missing if "pos_embed" not in name]
    return model
