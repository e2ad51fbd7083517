"""A data set in the guide's layout measures like the same clips in shards."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from components.evaluation.config import EvaluationConfig
from components.evaluation.stage import run
from components.latent_encoding import stage as latent_encoding
from components.latent_encoding.config import LatentEncodingConfig
from components.lib.contract import UserError
from components.lib.cosmos.model_folder import save_model_folder
from components.lib.cosmos.tokenizer.network import TOKENIZER_PRESETS, CosmosTokenizer
from components.lib.manifest import load_manifest
from components.lib.report.scores import Evaluation, parse_evaluation
from components.lib.shards.latents import prompt_digest
from components.lib.video.encode import write_mp4
from components.lib.video.probe import probe
from components.lib.video.records import VideoRecord, record_line

PROMPT = "A street."


def record_of(path: Path, split: Any) -> VideoRecord:
    """What discovery says of a good video."""
    found = probe(path)
    return VideoRecord(
        uri=path.absolute().as_uri(), sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        bytes=path.stat().st_size, width=found.width, height=found.height, fps=found.fps,
        frames=found.frames, duration=found.duration, prompt=PROMPT, split=split, drive="d",
    )  # fmt: skip


def write_grey(path: Path, grey: int) -> Path:
    """34 frames of one grey."""
    write_mp4(path, [np.full((64, 96, 3), grey, np.uint8)] * 34, 24)
    return path


class DataSets:
    """The same clips in both layouts, written by latent_encoding, and models to measure on them."""

    def __init__(
        self,
        models: Any,
        publish: Any,
        store: Any,
        root: str,
        progress: Any,
        records: Any,
        tmp: Path,
    ) -> None:
        self.models, self.store, self.root, self.progress = models, store, root, progress
        tiny = TOKENIZER_PRESETS["tiny-cv"]
        tokenizer = CosmosTokenizer(tiny)
        state = {**tokenizer.state_dict(), **tokenizer.extra_state_tensors()}
        folder = save_model_folder(tmp / "tokenizer", "tokenizer", "tiny-cv", tiny, state)
        files = {f"model/{path.name}": path.read_bytes() for path in folder.iterdir()}
        embedding = torch.randn(512, 64).bfloat16()
        self.prompts = publish(
            "prompt-embeddings", "p",
            {f"prompts/{prompt_digest(PROMPT)}.safetensors": save({"embedding": embedding})},
        )  # fmt: skip
        common = {
            "storage_root": f"{root}/runs", "checkpoint": publish("checkpoint", "t", files),
            "videos": publish("videos", "w", {"videos.jsonl": b"".join(map(record_line, records))}),
            "prompts": self.prompts, "frames": 17, "height": 64, "width": 96, "shard_samples": 3,
            "chunks_per_video": 5, "strategy": "spread", "device": "cpu", "dtype": "float32",
            "decode_workers": 1, "max_bad_fraction": 1.0,
        }  # fmt: skip
        self.uris = {}
        for layout in ("shards", "guide"):
            config = LatentEncodingConfig(layout=layout, **common)
            self.uris[layout] = latent_encoding.run(config, store, progress).manifest_uri

    def evaluate(self, layout: str, **changes: Any) -> Evaluation:
        values = {
            "training": self.models.training, "checkpoint": self.models.base,
            "data": self.uris[layout], "storage_root": self.root, "sigmas": 3, "shown": 1,
            "samples": 1, "sample_steps": 2, "prompts": self.prompts, "max_clips": 4,
        }  # fmt: skip
        result = run(EvaluationConfig(**{**values, **changes}), self.store, self.progress)
        uri = result.manifest.file_uri("evaluation.json")
        return parse_evaluation(self.store.get_bytes(uri), uri)


@pytest.fixture
def data_sets(
    diffusion: Any, publish: Any, store: Any, storage_root: Any, progress: Any,
    clips: dict[str, Path], tmp_path: Path,
) -> DataSets:  # fmt: skip
    """Two held-out videos, the first of which breaks off: its last clips are missing."""
    train, held = (
        record_of(clips["bigbuckbunny"], "train"),
        record_of(clips["carphone"], "validation"),
    )
    shorter = (write_grey(tmp_path / f"{grey}.mp4", grey) for grey in range(256))
    first = next(
        r for r in (record_of(path, "validation") for path in shorter) if r.sha256 < held.sha256
    )
    records = [train, held, first.model_copy(update={"frames": 2 * first.frames})]
    return DataSets(diffusion, publish, store, storage_root, progress, records, tmp_path)


def scores(found: Evaluation) -> Any:
    """Everything that was measured but the names of the clips, which say where they lie."""
    return {
        name: {
            role: [(c.video, c.sha256, c.drive, c.values) for c in held]
            for role, held in roles.items()
        }
        for name, roles in found.sets.items()
    }


def test_both_layouts_of_the_same_clips_measure_equal(data_sets: DataSets, store: Any) -> None:
    shards, guide = data_sets.evaluate("shards"), data_sets.evaluate("guide")
    assert scores(guide) == scores(shards)
    assert guide.scalars == shards.scalars
    assert not guide.same_video
    found = guide.clips("candidate")
    assert len(found) == 4 and len({clip.sha256 for clip in found}) == 2
    written = {entry.path for entry in load_manifest(data_sets.uris["guide"], store).files}
    numbers = [clip.clip.removeprefix("held-out/validation/") for clip in found]
    assert all(f"validation/{number}.video_latent.pth" in written for number in numbers)
    kept = sum(name.startswith("validation/") for name in written) // 4
    assert 4 < kept < 10, "there is something to choose from, and a gap in the numbers"
    assert max(map(int, numbers)) >= kept


def test_without_prompts_the_text_beside_the_clips_is_used(data_sets: DataSets) -> None:
    """The text that training reads; shards have none beside them."""
    with_prompts = scores(data_sets.evaluate("shards"))
    assert scores(data_sets.evaluate("guide", prompts="")) == with_prompts
    assert scores(data_sets.evaluate("shards", prompts="")) != with_prompts


def test_nothing_held_out_is_said_of_the_guide_s_files_too(
    data_sets: DataSets, publish: Any, store: Any
) -> None:
    whole = load_manifest(data_sets.uris["guide"], store)
    kept = [e for e in whole.files if "validation" not in e.path and not e.path.endswith(".png")]
    files = {entry.path: store.get_bytes(whole.file_uri(entry.path)) for entry in kept}
    data_sets.uris["alone"] = publish("latent-dataset", "alone", files)
    assert data_sets.evaluate("alone", shown=0, samples=0).same_video
    no_index = {name: data for name, data in files.items() if not name.startswith("index/")}
    data_sets.uris["unknown"] = publish("latent-dataset", "unknown", no_index)
    with pytest.raises(UserError, match=r"index/ does not say which video train/\d+ shows"):
        data_sets.evaluate("unknown")
