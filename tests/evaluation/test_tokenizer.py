"""Evaluation of tokenizers: figures against scikit-image, pictures, code use."""

from __future__ import annotations

import io
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from components.evaluation.config import EvaluationConfig
from components.evaluation.stage import run
from components.lib.report.scores import parse_evaluation


def config(inputs: Any, storage_root: Any, **changes: Any) -> Any:
    values = {
        "training": inputs.training, "checkpoint": inputs.base, "data": inputs.data,
        "storage_root": storage_root, "frames": 9, "crop": 64, "shown": 1,
    }  # fmt: skip
    return EvaluationConfig(**{**values, **changes})


def middle(mp4: bytes, count: int) -> np.ndarray:
    with av.open(io.BytesIO(mp4)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    start = (len(frames) - count) // 2
    left = (frames[0].shape[1] - 64) // 2
    return np.stack(frames[start : start + count])[:, :64, left : left + 64]


def test_figures_equal_scikit_image_on_the_same_pictures(
    tokenizer: Any, store: Any, storage_root: Any, progress: Any
) -> None:
    result = run(config(tokenizer, storage_root), store, progress)
    found = parse_evaluation(
        store.get_bytes(result.manifest.file_uri("evaluation.json")), "evaluation.json"
    )
    assert len(found.clips("base")) == 2, "two of the four videos are held out"
    models: Any = (("base", tokenizer.base_model), ("candidate", tokenizer.after_model))
    for role, model in models:
        for clip in found.clips(role):
            frames = middle(tokenizer.clips[clip.video], 9)
            video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
            with torch.no_grad():
                made = model.reconstruct(video)[0].permute(1, 2, 3, 0)
            made = ((made.clamp(-1, 1) + 1) * 127.5).round().numpy().astype(np.uint8)
            pairs = list(zip(frames, made, strict=True))
            psnr = np.mean([peak_signal_noise_ratio(a, b, data_range=255) for a, b in pairs])
            ssim = np.mean(
                [
                    structural_similarity(
                        a, b, data_range=255, channel_axis=2, gaussian_weights=True, sigma=1.5,
                        use_sample_covariance=False,
                    )
                    for a, b in pairs
                ]
            )  # fmt: skip
            assert clip.values["psnr"] == pytest.approx(psnr, abs=0.02)
            assert clip.values["ssim"] == pytest.approx(ssim, abs=2e-3)


def test_pictures_show_original_beside_reconstruction(
    tokenizer: Any, store: Any, storage_root: Any, progress: Any, read: Any
) -> None:
    result = run(config(tokenizer, storage_root), store, progress)
    sheet = Image.open(io.BytesIO(read(result.manifest, "pictures/reconstruction-00.jpg")))
    assert sheet.width > 5 * 200, "five columns"
    with av.open(io.BytesIO(read(result.manifest, "pictures/reconstruction-00.mp4"))) as video:
        frames = list(video.decode(video=0))
    assert len(frames) == 9 and frames[0].width == 3 * 64, "original, before, after"
    html = read(result.manifest, "report.html")
    assert b"data:video/mp4;base64," in html and b"data:image/jpeg;base64," in html
    assert result.metrics["compression_ratio"] == pytest.approx(
        24 * 9 * 64 * 64 / (16 * 16 * 2 * 8 * 8)
    )
    assert result.metrics["encode_frames_per_second"] > 0


@pytest.mark.parametrize("tokenizer", ["tiny-dv"], indirect=True)
def test_discrete_tokenizers_report_code_use(
    tokenizer: Any, store: Any, storage_root: Any, progress: Any
) -> None:
    result = run(config(tokenizer, storage_root), store, progress)
    assert 0 < result.metrics["candidate_code_usage"] <= 1
    used = result.metrics["candidate_code_usage"] * 64_000
    assert 1 <= result.metrics["candidate_code_perplexity"] <= used + 1e-6
