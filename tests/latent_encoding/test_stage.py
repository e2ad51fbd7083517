"""What users of latent_encoding rely on: the right frames, encoded right, whatever happens."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.latent_encoding import stage
from components.latent_encoding.config import LatentEncodingConfig
from components.lib.contract import UserError
from components.lib.cosmos.model_folder import load_tokenizer
from components.lib.manifest import Manifest
from components.lib.shards.latents import parse_latent
from components.lib.shards.tar import iter_samples
from components.lib.store import ObjectStore
from components.lib.video.frames import read_clip
from components.lib.video.records import VideoRecord

Make = Callable[..., LatentEncodingConfig]
Put = Callable[[list[VideoRecord]], str]


def read_samples(manifest: Manifest, store: ObjectStore) -> dict[str, Any]:
    """Key -> (latent, info) over all shards."""
    samples = {}
    for entry in manifest.files:
        if entry.path.endswith(".tar"):
            data = store.get_bytes(manifest.file_uri(entry.path), sha256=entry.sha256)
            for key, parts in iter_samples(io.BytesIO(data)):
                assert key not in samples
                samples[key] = parse_latent(parts)
    return samples


def test_latents_are_those_of_the_frames_they_name(
    store: ObjectStore,
    clips: dict[str, Path],
    make_record: Callable[..., VideoRecord],
    put_videos: Put,
    make_config: Make,
    tokenizer_folder: Path,
    progress: Any,
) -> None:
    records = [make_record(clips["bikes"]), make_record(clips["carphone"], split="validation")]
    result = stage.run(make_config(put_videos(records)), store, progress)
    samples = read_samples(result.manifest, store)
    assert len(samples) == 8
    tokenizer = load_tokenizer(tokenizer_folder, dtype=torch.float32)
    by_uri = {record.uri: record for record in records}
    for latent, info in samples.values():
        path = Path(by_uri[info.video].uri.removeprefix("file://"))
        frames = read_clip(path, start=info.start, count=9, size=(64, 96), resize="crop")
        video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        with torch.no_grad():
            expected = tokenizer.normalise(tokenizer.encode(video))[0]
        assert latent.dtype == torch.bfloat16
        assert latent.shape == (16, 2, 8, 12)
        np.testing.assert_allclose(latent.float().numpy(), expected.numpy(), rtol=0.02, atol=0.02)
    assert {info.split for _, info in samples.values()} == {"train", "validation"}
    assert result.manifest.summary["validation"] == "held-out"
    assert result.manifest.summary["latent_shape"] == [16, 2, 8, 12]


def test_no_usable_length_is_an_error_that_names_the_video(
    store: ObjectStore,
    clips: dict[str, Path],
    make_record: Callable[..., VideoRecord],
    put_videos: Put,
    make_config: Make,
    progress: Any,
) -> None:
    config = make_config(put_videos([make_record(clips["bikes"])]), frames=257)
    with pytest.raises(UserError, match=r"bikes\.mp4.*257 frames \(250\)"):
        stage.run(config, store, progress)
    assert json.dumps(config.model_dump())
