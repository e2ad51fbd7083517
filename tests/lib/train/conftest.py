"""Small models and data sets in local folders, and ranks to train them on."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from components.lib.cosmos.dit.config import DIT_PRESETS, DiTConfig
from components.lib.shards.latents import ClipInfo, latent_parts, prompt_digest

SMALL = DIT_PRESETS["tiny"].model_copy(
    update={
        "layers": 2,
        "hidden": 80,
        "ffn": 160,
        "text_dim": 32,
        "adaln_rank": 8,
        "max_frames": 8,
        "max_height": 16,
        "max_width": 16,
    }
)
# 27 tokens, which neither 2 nor 4 divides.
LATENT = (16, 3, 6, 6)
PROMPTS = ("a road", "a field", "rain")


@pytest.fixture(scope="session")
def small_dit() -> DiTConfig:
    """Geometry of the small DiT."""
    return SMALL


def write_latents(folder: Path, shapes: Sequence[tuple[int, ...]]) -> None:
    """Small latents of these shapes in turn: 3 training shards of unequal size, 1 held out."""
    generator = torch.Generator().manual_seed(1)
    sizes = {"train-0.tar": 5, "train-1.tar": 2, "train-2.tar": 4, "validation-0.tar": 3}
    for shard, (name, count) in enumerate(sizes.items()):
        with tarfile.open(folder / name, "w") as archive:
            for number in range(count):
                _, frames, height, width = shape = shapes[(shard + number) % len(shapes)]
                latent = torch.randn(shape, generator=generator).bfloat16()
                prompt = PROMPTS[(shard + number) % len(PROMPTS)]
                info = ClipInfo(
                    video=name,
                    video_sha256="0" * 64,
                    prompt=prompt,
                    prompt_sha256=prompt_digest(prompt),
                    start=0,
                    start_frame=0,
                    num_frames=8 * frames - 7,
                    fps=24.0,
                    source_fps=24.0,
                    height=8 * height,
                    width=8 * width,
                    clip_height=8 * height,
                    clip_width=8 * width,
                    resize="crop",
                )
                for extension, data in latent_parts(latent, info).items():
                    member = tarfile.TarInfo(f"{number:06d}.{extension}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="session")
def latent_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents of one size."""
    folder = tmp_path_factory.mktemp("latents")
    write_latents(folder, [LATENT])
    return folder


@pytest.fixture(scope="session")
def sized_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents of several sizes, as buckets make them: 27, 10, 48 and 30 tokens."""
    folder = tmp_path_factory.mktemp("sized")
    write_latents(folder, [LATENT, (16, 1, 4, 10), (16, 4, 8, 6), (16, 2, 10, 6)])
    return folder


@pytest.fixture(scope="session")
def two_sizes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents of two sizes, which differ in every dimension: 27 and 80 tokens."""
    folder = tmp_path_factory.mktemp("two-sizes")
    write_latents(folder, [LATENT, (16, 4, 8, 10)])
    return folder


@pytest.fixture(scope="session")
def prompt_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings of the prompts of `latent_folder`."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("prompts")
    (folder / "prompts").mkdir()
    generator = torch.Generator().manual_seed(2)
    for length, prompt in enumerate(PROMPTS, start=3):
        rows = torch.randn(16, SMALL.text_dim, generator=generator).bfloat16()
        rows[length:] = 0
        path = folder / "prompts" / f"{prompt_digest(prompt)}.safetensors"
        save_file({"embedding": rows, "length": torch.tensor(length)}, str(path))
    return folder


@pytest.fixture(scope="session")
def dit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small DiT, every weight of it random (zeros would hide a missing gradient)."""
    from components.lib.cosmos.dit.network import DiT
    from components.lib.cosmos.model_folder import save_model_folder

    model = DiT(SMALL, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    folder = tmp_path_factory.mktemp("dit")
    return save_model_folder(folder, "dit", "small", SMALL, model.state_dict())


@pytest.fixture(scope="session")
def diffusion_arguments(latent_folder: Path, prompt_folder: Path, dit_folder: Path) -> list[str]:
    """A short training of the small DiT with a global batch of four samples."""
    return [
        *("--factory", "tiny_diffusion"),
        f"data.path={latent_folder}",
        f"data.prompts={prompt_folder}",
        f"resume.restore_config.path={dit_folder}",
        "data.global_batch_size=4",
        "trainer.max_steps=4",
        "trainer.val_check_interval=4",
        "trainer.limit_val_batches=1",
        "optim.config.lr=1e-3",
        "optim.lr_scheduler.name=constant",
        "optim.lr_scheduler.warmup_steps=0",
        "log.ckpt.every_n_train_steps=0",
        "log.tensorboard=false",
        "trainer.accelerator=cpu",
    ]


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tars of small moving pictures: two training shards and a held-out one."""
    from components.lib.video.encode import write_mp4

    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(1)
    for name, count in {"train-0.tar": 2, "train-1.tar": 1, "validation-0.tar": 1}.items():
        with tarfile.open(folder / name, "w") as archive:
            for number in range(count):
                picture = (
                    rng.integers(0, 255, (10, 10, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
                )
                frames = [np.roll(picture, 3 * shift, axis=1) for shift in range(20)]
                write_mp4(folder / "clip.mp4", iter(frames), 24.0)
                archive.add(folder / "clip.mp4", f"{number}.mp4")
    return folder


@pytest.fixture(scope="session")
def tokenizer_arguments(video_folder: Path) -> list[str]:
    """A short training of a tiny tokenizer from seeded weights with a global batch of two."""
    return [
        *("--factory", "tiny_tokenizer"),
        f"data.path={video_folder}",
        "data.global_batch_size=2",
        "data.task_encoder.crop_height=32",
        "data.task_encoder.resize_height=64",
        "data.task_encoder.resize_width=64",
        "trainer.max_steps=3",
        "trainer.val_check_interval=3",
        "optim.lr_scheduler.name=constant",
        "optim.lr_scheduler.warmup_steps=0",
        "log.ckpt.every_n_train_steps=0",
        "log.tensorboard=false",
        "trainer.accelerator=cpu",
    ]


Scenario = dict[str, Any]


class Hardware(NamedTuple):
    """What the layouts are compared on, and how near their figures must be (relative).

    By default gloo ranks on the CPU in fp32. COSMOS_TEST_GPUS=2 takes that many GPUs: NCCL, and
    bf16 compute on fp32 masters, as trained for real; COSMOS_TEST_PRECISION=bf16-mixed does the
    same arithmetic on the CPU. In bf16 each rounding is up to 2^-9 = 2e-3, and layouts sum in
    different orders: a loss, a mean over thousands of numbers, keeps far more digits than a
    gradient norm.
    """

    gpus: int = 0
    bf16: bool = False

    @property
    def arguments(self) -> list[str]:
        """Overrides of every training."""
        accelerator = f"trainer.accelerator={'gpu' if self.gpus else 'cpu'}"
        return [accelerator, "trainer.precision=bf16-mixed"] if self.bf16 else [accelerator]

    @property
    def loss(self) -> float:
        """Tolerance of losses."""
        return 2e-3 if self.bf16 else 1e-5

    @property
    def norm(self) -> float:
        """Tolerance of gradient norms."""
        return 1e-2 if self.bf16 else 1e-5

    def tolerance(self, metric: str) -> float:
        """Tolerance of a metric by its name; what is not computed in bf16 is exact."""
        return {"loss": self.loss, "grad_norm": self.norm}.get(metric, 1e-5)

    def fits(self, world: int) -> bool:
        """Whether so many ranks can run, each on a GPU of its own."""
        return not self.gpus or world <= self.gpus


HARDWARE = Hardware(
    int(os.environ.get("COSMOS_TEST_GPUS", "0")),
    bool(int(os.environ.get("COSMOS_TEST_GPUS", "0")))
    or os.environ.get("COSMOS_TEST_PRECISION") == "bf16-mixed",
)


@pytest.fixture(scope="session")
def hardware() -> Hardware:
    """See `Hardware`."""
    if HARDWARE.gpus > torch.cuda.device_count():
        pytest.skip(
            f"COSMOS_TEST_GPUS={HARDWARE.gpus}, but {torch.cuda.device_count()} GPUs are here"
        )
    return HARDWARE


def run_scenarios(folder: Path, scenarios: list[Scenario]) -> None:
    """Train every scenario; each leaves its files in its folder. The test's limit bounds it."""
    for scenario in scenarios:
        if not scenario.get("copy_of"):
            Path(scenario["folder"]).mkdir(parents=True, exist_ok=True)
    path = folder / "scenarios.json"
    path.write_text(json.dumps(scenarios))
    world = max(scenario["world"] for scenario in scenarios)
    script = str(Path(__file__).with_name("ranks.py"))
    logs = [(folder / f"rank-{rank}.log").open("w") for rank in range(world)]
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(path), str(rank)], stdout=log, stderr=subprocess.STDOUT
        )
        for rank, log in enumerate(logs)
    ]
    try:
        codes: list[int | None] = [None]
        # One rank that fails leaves the others waiting for it.
        while None in codes and not any(codes):
            time.sleep(0.05)
            codes = [rank.poll() for rank in ranks]
    finally:
        for rank, log in zip(ranks, logs, strict=True):
            rank.kill()
            log.close()
    if any(codes) or None in codes:
        texts = [(folder / f"rank-{rank}.log").read_text()[-2000:] for rank in range(world)]
        pytest.fail("\n---\n".join(texts))


@pytest.fixture(scope="session")
def trainings() -> Callable[[Path, list[Scenario]], None]:
    """`run_scenarios`."""
    return run_scenarios


def metrics_of(folder: Path, split: str = "train") -> list[dict[str, float]]:
    """The lines of a run's metrics."""
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["split"] == split]


@pytest.fixture(scope="session")
def metrics() -> Callable[..., list[dict[str, float]]]:
    """`metrics_of`."""
    return metrics_of
