"""Small data sets and models for the training tests, in the store as the stages leave them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from components.lib.manifest import MANIFEST_NAME, FileEntry, Kind, Manifest
from components.lib.shards.latents import ClipInfo, latent_parts, prompt_digest
from components.lib.store import ObjectStore

Put = Callable[[Kind, dict[str, bytes], dict[str, dict[str, Any]]], str]


@pytest.fixture
def put_manifest(store: ObjectStore, storage_root: str) -> Put:
    """Upload files as an output of an earlier stage; returns the manifest's URI."""

    def put(kind: Kind, files: dict[str, bytes], meta: dict[str, dict[str, Any]]) -> str:
        uri = f"{storage_root}/inputs/{kind}/"
        entries = []
        for path, data in files.items():
            info = store.put_bytes(uri + path, data)
            assert info.sha256 is not None
            entries.append(
                FileEntry(path=path, bytes=info.bytes, sha256=info.sha256, meta=meta.get(path, {}))
            )
        manifest = Manifest(
            kind=kind, stage="test", stage_version="1", address="0", uri=uri, files=tuple(entries)
        )
        store.put_bytes(uri + MANIFEST_NAME, manifest.model_dump_json().encode())
        return uri + MANIFEST_NAME

    return put


def tar_bytes(samples: dict[str, dict[str, bytes]]) -> bytes:
    """A tar of samples: key -> extension -> bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for key, parts in samples.items():
            for extension, data in parts.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def latent_shard(
    count: int, *, split: str, seed: int, shape: tuple[int, ...] = (16, 5, 22, 40)
) -> bytes:
    """A shard of latents that have something in common to learn."""
    shared = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    samples = {}
    for number in range(count):
        latent = 0.8 * shared.roll(number, dims=3) + 0.3 * torch.randn(shape, generator=generator)
        info = ClipInfo(
            video=f"{split}-{seed}",
            video_sha256="0" * 64,
            prompt="a road",
            prompt_sha256=prompt_digest("a road"),
            start=0,
            start_frame=0,
            num_frames=33,
            fps=24.0,
            source_fps=24.0,
            height=176,
            width=320,
            clip_height=176,
            clip_width=320,
            resize="crop",
            split="validation" if split == "validation" else "train",
        )
        samples[f"{number:06d}"] = latent_parts(latent.bfloat16(), info)
    return tar_bytes(samples)


@pytest.fixture
def latent_data(put_manifest: Put) -> str:
    """A latent data set of two training shards and one held-out shard."""
    files = {
        "train-000000.tar": latent_shard(8, split="train", seed=1),
        "train-000001.tar": latent_shard(8, split="train", seed=2),
        "validation-000000.tar": latent_shard(2, split="validation", seed=3),
    }
    counts = {"train-000000.tar": 8, "train-000001.tar": 8, "validation-000000.tar": 2}
    meta = {
        path: {"split": path.split("-")[0], "samples": samples} for path, samples in counts.items()
    }
    return put_manifest("latent-dataset", files, meta)


@pytest.fixture
def prompt_data(put_manifest: Put) -> str:
    """The embedding of the one prompt of `latent_data`."""
    from safetensors.torch import save

    rows = torch.randn(512, 64, generator=torch.Generator().manual_seed(4)).bfloat16()
    rows[12:] = 0
    data = save({"embedding": rows, "length": torch.tensor(12)})
    path = f"prompts/{prompt_digest('a road')}.safetensors"
    return put_manifest("prompt-embeddings", {path: data}, {})


@pytest.fixture
def clip_data(put_manifest: Put, clips: dict[str, Path]) -> str:
    """A tokenizer data set: one real clip to train on, another held out."""
    files = {
        "000000.tar": tar_bytes({"0": {"mp4": clips["bigbuckbunny"].read_bytes()}}),
        "000001.tar": tar_bytes({"0": {"mp4": clips["bikes"].read_bytes()}}),
    }
    meta = {
        "000000.tar": {"split": "train", "samples": 1},
        "000001.tar": {"split": "validation", "samples": 1},
    }
    return put_manifest("tokenizer-dataset", files, meta)


@pytest.fixture
def tiny_dit(put_manifest: Put, tmp_path: Path) -> str:
    """A tiny DiT with random weights, as checkpoint_fetch leaves it."""
    from components.lib.cosmos.dit.network import DIT_PRESETS, DiT
    from components.lib.cosmos.model_folder import save_model_folder

    model = DiT(DIT_PRESETS["tiny"], seed=5)
    folder = save_model_folder(
        tmp_path / "dit", "dit", "tiny-dit", model.config, model.state_dict()
    )
    files = {f"model/{path.name}": path.read_bytes() for path in folder.iterdir()}
    return put_manifest("checkpoint", files, {})


@pytest.fixture
def tiny_tokenizer(put_manifest: Put, tmp_path: Path) -> str:
    """A tiny continuous tokenizer with random weights, as checkpoint_fetch leaves it."""
    from components.lib.cosmos.model_folder import save_model_folder
    from components.lib.cosmos.tokenizer.network import TOKENIZER_PRESETS, CosmosTokenizer

    torch.manual_seed(6)
    model = CosmosTokenizer(TOKENIZER_PRESETS["tiny-cv"])
    folder = save_model_folder(
        tmp_path / "tokenizer",
        "tokenizer",
        "tiny-cv",
        model.config,
        {**model.state_dict(), **model.extra_state_tensors()},
    )
    files = {f"model/{path.name}": path.read_bytes() for path in folder.iterdir()}
    return put_manifest("checkpoint", files, {})
