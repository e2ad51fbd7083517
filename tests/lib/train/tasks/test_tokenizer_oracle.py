"""Tokenizer training against a plain loop over diffusers' autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLCosmos

from components.lib.cosmos.formats.diffusers_folder import tokenizer_to_diffusers_config
from components.lib.cosmos.formats.names import tokenizer_to_diffusers
from components.lib.cosmos.model_folder import load_state_dict, save_model_folder
from components.lib.cosmos.tokenizer.network import (
    TOKENIZER_PRESETS,
    CosmosTokenizer,
    default_statistics,
)
from components.lib.shards.tar import IndexedShard
from components.lib.train.data.clips import ClipReader
from components.lib.train.data.sampler import Sampler, seed_of
from components.lib.train.settings.config import TaskEncoder

pytestmark = pytest.mark.layouts
NETWORK = TOKENIZER_PRESETS["tiny-cv"]
STEPS, BATCH = 3, 2


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights as a model folder."""
    torch.manual_seed(11)
    model = CosmosTokenizer(NETWORK)
    state = {**model.state_dict(), **model.extra_state_tensors()}
    folder = tmp_path_factory.mktemp("start") / "tokenizer"
    return save_model_folder(folder, "tokenizer", "tiny-cv", NETWORK, state)


def oracle(folder: Path) -> AutoencoderKLCosmos:
    values = tokenizer_to_diffusers_config(NETWORK, *default_statistics(NETWORK))
    model = AutoencoderKLCosmos(**values)
    state = load_state_dict(folder)
    weights = {
        tokenizer_to_diffusers(name): value
        for name, value in state.items()
        if not name.startswith("latents_")
    }
    model.load_state_dict(weights)
    return model


def clips_of_step(step: int, videos: Path) -> torch.Tensor:
    """[2, 3, 9, 32, 32] in [-1, 1], read by the tar in order."""
    tars = [IndexedShard(path) for path in sorted(videos.glob("train-*.tar"))]
    order = Sampler([len(tar.samples) for tar in tars], seed=1234, window=8, shuffle=True)
    encoder = TaskEncoder(crop_height=32, temporal_crop=9, resize_height=64, resize_width=64)
    reader = ClipReader(encoder, 2**28)
    clips = []
    for number in range(BATCH * step, BATCH * (step + 1)):
        shard, index = order.at(number)
        key, parts = tars[shard].read(index)
        seed = seed_of("clip", 1234, number, 0)
        clips.append(reader.clip(f"{shard}:{key}", parts["mp4"], seed))
    return torch.stack(clips).float() / 127.5 - 1


def test_losses_equal_a_plain_loop_over_diffusers(
    start: Path,
    video_folder: Path,
    tokenizer_arguments: list[str],
    trainings: Callable[..., None],
    metrics: Callable[..., list[dict[str, float]]],
    tmp_path: Path,
) -> None:
    """L1, AdamW without decay of the biases, clipping by the global norm; written out in full."""
    arguments = [
        *tokenizer_arguments,
        f"model.jit_ckpt_pth={start}",
        "optim.config.weight_decay=0.01",
    ]
    scenario = {"world": 1, "folder": str(tmp_path / "ours"), "arguments": arguments}
    trainings(tmp_path, [scenario])
    model = oracle(start)
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    others = [p for name, p in model.named_parameters() if not name.endswith("bias")]
    optimizer = torch.optim.AdamW(
        [{"params": others, "weight_decay": 0.01}, {"params": biases, "weight_decay": 0.0}],
        lr=1e-3,
        betas=(0.9, 0.99),
        eps=1e-8,
    )
    losses, norms = [], []
    for step in range(STEPS):
        video = clips_of_step(step, video_folder)
        loss = (model(video).sample - video).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        optimizer.step()
        losses.append(loss.item())
    found = metrics(tmp_path / "ours")
    assert [line["loss"] for line in found] == pytest.approx(losses, rel=1e-5)
    assert [line["grad_norm"] for line in found] == pytest.approx(norms, rel=1e-5)
    trained = load_state_dict(tmp_path / "ours" / "run" / "model")
    for name, value in model.state_dict().items():
        [ours] = [key for key in trained if not key.startswith("latents_")
                  and tokenizer_to_diffusers(key) == name]  # fmt: skip
        torch.testing.assert_close(trained[ours], value, rtol=1e-3, atol=1e-4)
