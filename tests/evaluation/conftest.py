"""Small published inputs of the evaluation stage: models, data sets and runs in a real store."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.lib.cosmos.dit.network import DIT_PRESETS, DiT
from components.lib.cosmos.model_folder import save_model_folder
from components.lib.cosmos.tokenizer.network import TOKENIZER_PRESETS, CosmosTokenizer
from components.lib.manifest import MANIFEST_NAME, FileEntry, InputRef, Manifest, load_manifest
from components.lib.report.pictures import strip
from components.lib.shards.latents import ClipInfo, latent_parts
from components.lib.shards.tar import ShardWriter
from components.lib.store import ObjectStore
from components.lib.video.encode import write_mp4
from components.lib.video.records import VideoRecord, record_line

STEPS = 60
Publish = Callable[..., str]


@pytest.fixture
def publish(store: ObjectStore, storage_root: str) -> Publish:
    """Write files and a manifest as a stage would; returns the manifest's URI."""

    def write(
        kind: Any,
        name: str,
        files: Mapping[str, bytes],
        *,
        metas: Mapping[str, dict[str, Any]] | None = None,
        inputs: Mapping[str, str] | None = None,
        summary: Mapping[str, Any] | None = None,
    ) -> str:
        uri = f"{storage_root}/{kind}/{name}/"
        entries = []
        for path, data in files.items():
            store.put_bytes(uri + path, data)
            digest = hashlib.sha256(data).hexdigest()
            meta = dict((metas or {}).get(path, {}))
            entries.append(FileEntry(path=path, bytes=len(data), sha256=digest, meta=meta))
        refs = {
            key: InputRef(uri=ref, content=load_manifest(ref, store).content)
            for key, ref in (inputs or {}).items()
        }
        manifest = Manifest(
            kind=kind, stage=kind, stage_version="1", address=name, uri=uri,
            files=tuple(entries), inputs=refs, summary=dict(summary or {}),
        )  # fmt: skip
        store.put_bytes(uri + MANIFEST_NAME, manifest.model_dump_json().encode())
        return uri + MANIFEST_NAME

    return write


def folder_files(folder: Path, prefix: str = "model/") -> dict[str, bytes]:
    """The files of a folder by path."""
    return {prefix + path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def metrics_lines(steps: int = STEPS, *, seed: int = 0, **extra: float) -> bytes:
    """A plausible metrics.jsonl: a falling, noisy loss and four validations."""
    rng = np.random.default_rng(seed)
    lines = []
    for step in range(1, steps + 1):
        loss = (0.5 + np.exp(-step / 15)) * np.exp(rng.normal(0, 0.1))
        record = {"step": step, "split": "train", "loss": float(loss), "grad_norm": 1.0}
        lines.append(json.dumps(record | {"lr": 1e-4, "step_seconds": 0.2} | extra))
        if step % (steps // 4) == 0:
            lines.append(json.dumps({"step": step, "split": "validation", "loss": float(loss)}))
    return ("\n".join(lines) + "\n").encode()


@pytest.fixture
def publish_run(publish: Publish) -> Publish:
    """A training run with these weights."""

    def write(
        name: str, model: Mapping[str, bytes], inputs: Mapping[str, str], **summary: object
    ) -> str:
        files = {
            "metrics.jsonl": metrics_lines(),
            "settings.json": json.dumps({"trainer": {"max_steps": STEPS}}).encode(),
            **model,
        }
        facts = {"name": name, **summary}
        return publish("training-run", name, files, inputs=inputs, summary=facts)

    return write


def videos(count: int) -> list[VideoRecord]:
    """Records of made-up videos, two per drive; the last drive is held out."""
    return [
        VideoRecord(
            uri=f"s3://fleet/drive{i // 2}/video{i}.mp4",
            sha256=hashlib.sha256(str(i).encode()).hexdigest(),
            bytes=1000 + i,
            drive=f"drive{i // 2}",
            split="validation" if i >= count // 2 else "train",
        )
        for i in range(count)
    ]


def shard_bytes(folder: Path, samples: Mapping[str, Mapping[str, bytes]]) -> bytes:
    """One tar shard."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(folder, max_bytes=1 << 30, max_samples=1000)
    for key, parts in samples.items():
        writer.write(key, dict(parts))
    return writer.close()[0].path.read_bytes()


class DiffusionInputs:
    """What evaluation of a diffusion model reads, and the pieces to check it against."""

    def __init__(self, publish: Publish, publish_run: Publish, tmp: Path) -> None:
        self.config = DIT_PRESETS["tiny"].model_copy(update={"layers": 2})
        torch.manual_seed(0)
        self.base_model = DiT(self.config).eval()
        with torch.no_grad():
            for parameter in self.base_model.parameters():
                if parameter.is_floating_point():
                    parameter.normal_(0, 0.03)
        self.after_model = DiT(self.config).eval()
        weights = {k: v.clone() for k, v in self.base_model.state_dict().items()}
        for name, value in weights.items():
            if name.startswith("final_layer.linear"):
                value.mul_(0.9)
        self.after_model.load_state_dict(weights)
        self.records = videos(6)
        self.video_manifest = publish(
            "videos", "v", {"videos.jsonl": b"".join(map(record_line, self.records))}
        )
        generator = torch.Generator().manual_seed(1)
        self.latents = {}
        shards = {}
        for split in ("train", "validation"):
            samples = {}
            for i, record in enumerate(self.records):
                if record.split != split:
                    continue
                latent = torch.randn(16, 3, 8, 12, generator=generator).bfloat16()
                info = ClipInfo(
                    video=record.uri, video_sha256=record.sha256, prompt="a", prompt_sha256=None,
                    start=0, start_frame=0, num_frames=17, fps=24, source_fps=24, height=64,
                    width=96,
                    clip_height=64, clip_width=96, resize="crop", split=split, drive=record.drive,
                )  # fmt: skip
                samples[f"{i:06d}"] = latent_parts(latent, info)
                self.latents[record.uri] = latent.float()
            shards[f"{split}-000000.tar"] = (split, samples)
        self.contact_sheet = strip({"clip": [np.full((8, 8, 3), 200, np.uint8)]})
        files = {name: shard_bytes(tmp / name, samples) for name, (_, samples) in shards.items()}
        self.data = publish(
            "latent-dataset", "d", {**files, "contact_sheet.png": self.contact_sheet},
            metas={n: {"split": s, "samples": len(x)} for n, (s, x) in shards.items()},
            inputs={"videos": self.video_manifest},
            summary={"latent_shape": [16, 3, 8, 12], "validation": "held-out"},
        )  # fmt: skip
        folders = {}
        for name, model in (("base", self.base_model), ("after", self.after_model)):
            folders[name] = save_model_folder(
                tmp / name, "dit", "tiny", self.config, model.state_dict()
            )
        self.base = publish("checkpoint", "base", folder_files(folders["base"]))
        inputs = {"checkpoint": self.base, "data": self.data}
        self.training = publish_run("after", folder_files(folders["after"]), inputs)
        self.unchanged = publish_run("unchanged", folder_files(folders["base"]), inputs)
        self.best = publish_run(
            "best", folder_files(folders["after"]), inputs, steps=40, exported_step=12
        )


@pytest.fixture
def diffusion(publish: Publish, publish_run: Publish, tmp_path: Path) -> DiffusionInputs:
    """A tiny diffusion model before and after, six videos of three drives."""
    return DiffusionInputs(publish, publish_run, tmp_path)


class TokenizerInputs:
    """What evaluation of a tokenizer reads: real pictures that pan over a noise texture."""

    def __init__(self, publish: Publish, publish_run: Publish, tmp: Path, preset: str) -> None:
        self.config = TOKENIZER_PRESETS[preset]
        torch.manual_seed(0)
        self.base_model = CosmosTokenizer(self.config).eval()
        self.after_model = CosmosTokenizer(self.config).eval()
        self.records = videos(4)
        self.clips = {}
        samples: dict[str, dict[str, dict[str, bytes]]] = {"train": {}, "validation": {}}
        for i, record in enumerate(self.records):
            rng = np.random.default_rng(i)
            texture = rng.integers(0, 255, (12, 40, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
            frames = [texture[:64, 2 * t : 2 * t + 96] for t in range(20)]
            write_mp4(tmp / "video.mp4", frames, 24)
            mp4 = (tmp / "video.mp4").read_bytes()
            self.clips[record.uri] = mp4
            parts = {"mp4": mp4, "json": record_line(record)}
            samples[record.split or "train"][f"{i:06d}"] = parts
        self.data = publish(
            "tokenizer-dataset", "d",
            {f"{i:06d}.tar": shard_bytes(tmp / s, samples[s]) for i, s in enumerate(samples)},
            metas={
                f"{i:06d}.tar": {"split": s, "samples": len(samples[s])}
                for i, s in enumerate(samples)
            },
        )  # fmt: skip
        folders = {}
        for name, model in (("base", self.base_model), ("after", self.after_model)):
            state = {**model.state_dict(), **model.extra_state_tensors()}
            folders[name] = save_model_folder(tmp / name, "tokenizer", preset, self.config, state)
        self.base = publish("checkpoint", "base", folder_files(folders["base"]))
        self.training = publish_run(
            "after", folder_files(folders["after"]), {"checkpoint": self.base, "data": self.data}
        )


@pytest.fixture
def tokenizer(
    publish: Publish, publish_run: Publish, tmp_path: Path, request: pytest.FixtureRequest
) -> TokenizerInputs:
    """A tiny tokenizer (preset: the fixture's parameter) before and after, four videos."""
    return TokenizerInputs(publish, publish_run, tmp_path, getattr(request, "param", "tiny-cv"))


@pytest.fixture
def read(store: ObjectStore) -> Callable[[Manifest, str], bytes]:
    """Read one file of an output."""
    return lambda manifest, path: store.get_bytes(manifest.file_uri(path))


def as_stream(data: bytes) -> io.BytesIO:
    """Bytes as a file."""
    return io.BytesIO(data)
