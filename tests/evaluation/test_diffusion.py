"""Evaluation of diffusion models: the numbers, what decides them, and what is written."""

from __future__ import annotations

import base64
import io
import json
import math
from typing import Any

import av
import numpy as np
import pytest
import torch

from components.evaluation.config import EvaluationConfig
from components.evaluation.diffusion import fixed_noise, noise_grid, patch_vectors
from components.evaluation.held_out import LatentClip
from components.evaluation.stage import run
from components.lib.contract import UserError
from components.lib.cosmos.conditions import Conditions
from components.lib.cosmos.model_folder import save_model_folder
from components.lib.cosmos.tokenizer.network import TOKENIZER_PRESETS, CosmosTokenizer
from components.lib.manifest import load_manifest
from components.lib.report.scores import parse_evaluation
from components.lib.shards.latents import ClipInfo


def config(inputs: Any, storage_root: Any, **changes: Any) -> Any:
    values = {
        "training": inputs.training, "checkpoint": inputs.base, "data": inputs.data,
        "storage_root": storage_root, "sigmas": 3, "shown": 1, "samples": 0,
    }  # fmt: skip
    return EvaluationConfig(**{**values, **changes})


def test_sigma_grid_stands_for_the_training_distribution() -> None:
    """Medians of equal parts of ln sigma ~ N(0, 1): symmetric around 1, known quantiles."""
    grid = noise_grid(4, 1, 0).sigmas
    assert np.allclose(np.log(grid), [-1.15035, -0.31864, 0.31864, 1.15035], atol=1e-5)


def test_loss_is_the_published_one_on_fixed_noise(
    diffusion: Any, store: Any, storage_root: Any, progress: Any
) -> None:
    """Against the published formula, computed apart: w(sigma) (x0 - D)^2 with x0 = 0.5 latent."""
    result = run(config(diffusion, storage_root), store, progress)
    found = parse_evaluation(
        store.get_bytes(result.manifest.file_uri("evaluation.json")), "evaluation.json"
    )
    assert {clip.drive for clip in found.clips("candidate")} == {"drive1", "drive2"}
    pairs: Any = (("base", diffusion.base_model), ("candidate", diffusion.after_model))
    for role, model in pairs:
        for clip in found.clips(role):
            latent = diffusion.latents[clip.video]
            info = ClipInfo(
                video=clip.video, video_sha256=clip.sha256, prompt=None, prompt_sha256=None,
                start=0, start_frame=0, num_frames=17, fps=24, source_fps=24, height=1, width=1,
                clip_height=1, clip_width=1, resize="crop",
            )  # fmt: skip
            losses = []
            for level, sigma in enumerate(noise_grid(3, 1, 0).sigmas):
                noise = fixed_noise(LatentClip("", latent, info), level, 0, 0)
                x0 = 0.5 * latent
                x = x0 + sigma * noise
                total = sigma**2 + 0.25
                with torch.no_grad():
                    raw = model(
                        (x / math.sqrt(total))[None], torch.tensor([math.log(sigma) / 4]),
                        Conditions(torch.zeros(1, 512, 64), torch.tensor([24.0])),
                    )[0]  # fmt: skip
                guess = 0.25 / total * x + sigma * 0.5 / math.sqrt(total) * raw
                weight = total / (sigma * 0.5) ** 2
                losses.append(float((weight * (x0 - guess) ** 2).mean()))
            assert clip.values["loss"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_writes_everything_and_says_what_it_found(
    diffusion: Any, store: Any, storage_root: Any, progress: Any, read: Any
) -> None:
    result = run(config(diffusion, storage_root), store, progress)
    paths = {entry.path for entry in result.manifest.files}
    assert {
        "report.html", "summary.md", "evaluation.json", "loss_curve.csv", "loss_curve.png",
        "pictures/denoised-00.jpg",
    } <= paths  # fmt: skip
    html = read(result.manifest, "report.html").decode()
    assert "drive1/video" in html or "drive1" in html
    assert diffusion.records[0].sha256 in html, "the lineage names every source video's hash"
    assert base64.b64encode(diffusion.contact_sheet).decode() in html, "the selected clips"
    assert read(result.manifest, "loss_curve.png")[:4] == b"\x89PNG"
    rows = read(result.manifest, "loss_curve.csv").decode().splitlines()
    assert rows[0].startswith("run,split,step,loss") and len(rows) == 1 + 60 + 4
    assert result.metrics["loss_ratio"] < 0.9
    assert result.metrics["improvement_over_base"] == pytest.approx(
        result.manifest.summary["metrics"]["improvement_over_base"]
    )
    assert "| held-out video | held-out loss |" in read(result.manifest, "summary.md").decode()


def test_same_inputs_are_reused_and_unchanged_weights_measure_equal(
    diffusion: Any, store: Any, storage_root: Any, progress: Any
) -> None:
    first = run(config(diffusion, storage_root), store, progress)
    again = run(config(diffusion, storage_root), store, progress)
    assert again.reused and again.manifest == first.manifest
    same = run(config(diffusion, storage_root, training=diffusion.unchanged), store, progress)
    assert same.metrics["improvement_over_base"] == 0


def test_without_a_held_out_drive_it_measures_on_training_video_and_says_so(
    diffusion: Any, publish: Any, store: Any, storage_root: Any, progress: Any, read: Any
) -> None:
    whole = json.loads(store.get_bytes(diffusion.data))
    train = next(entry for entry in whole["files"] if entry["path"].startswith("train"))
    data = publish(
        "latent-dataset", "single",
        {"train-000000.tar": store.get_bytes(whole["uri"] + train["path"])},
        metas={"train-000000.tar": train["meta"]},
    )  # fmt: skip
    result = run(config(diffusion, storage_root, data=data), store, progress)
    assert result.manifest.summary["same_video"] is True
    assert "measured on video it was trained on" in read(result.manifest, "report.html").decode()


def test_damaged_weights_are_an_error_that_names_the_model(
    diffusion: Any, publish_run: Any, store: Any, storage_root: Any, progress: Any, tmp_path: Any
) -> None:
    state = {k: v.clone() for k, v in diffusion.base_model.state_dict().items()}
    state["final_layer.linear.weight"].fill_(float("nan"))
    folder = save_model_folder(tmp_path / "nan", "dit", "tiny", diffusion.config, state)
    files = {f"model/{path.name}": path.read_bytes() for path in folder.iterdir()}
    broken = publish_run("nan", files, {"checkpoint": diffusion.base})
    with pytest.raises(UserError, match=r"candidate model .* is nan"):
        run(config(diffusion, storage_root, training=broken), store, progress)


def test_wrong_kind_of_data_is_named(
    diffusion: Any, store: Any, storage_root: Any, progress: Any
) -> None:
    with pytest.raises(UserError, match="'videos' manifest"):
        run(config(diffusion, storage_root, data=diffusion.video_manifest), store, progress)


def test_videos_are_made_with_the_same_seed_before_and_after(
    diffusion: Any, store: Any, storage_root: Any, progress: Any
) -> None:
    settings = {"samples": 1, "sample_steps": 2, "shown": 0}
    result = run(config(diffusion, storage_root, **settings), store, progress)
    paths = {entry.path: entry.sha256 for entry in result.manifest.files}
    assert "pictures/sample-00.jpg" in paths
    assert result.metrics["base_latent_patch_frechet"] > 0
    other = run(config(diffusion, storage_root, **settings, seed=1), store, progress)
    assert other.manifest.entry("pictures/sample-00.jpg").sha256 != paths["pictures/sample-00.jpg"]


def test_patch_vectors_are_means_of_patches() -> None:
    latent = torch.arange(2 * 1 * 8 * 4, dtype=torch.float32).reshape(2, 1, 8, 4)
    vectors = patch_vectors(latent)
    assert vectors.shape == (2, 2)
    assert torch.equal(vectors[0], latent[:, 0, :4].mean(dim=(1, 2)))


def test_with_the_latents_tokenizer_pictures_are_decoded_and_videos_play(
    diffusion: Any,
    publish: Any,
    store: Any,
    storage_root: Any,
    progress: Any,
    tmp_path: Any,
    read: Any,
) -> None:
    """The data set's manifest names the tokenizer that made it; that one decodes."""
    tiny = TOKENIZER_PRESETS["tiny-cv"]
    model = CosmosTokenizer(tiny)
    state = {**model.state_dict(), **model.extra_state_tensors()}
    folder = save_model_folder(tmp_path / "tokenizer", "tokenizer", "tiny-cv", tiny, state)
    files = {f"model/{path.name}": path.read_bytes() for path in folder.iterdir()}
    tokenizer = publish("checkpoint", "tokenizer", files)
    whole = load_manifest(diffusion.data, store)
    shards = {entry.path: store.get_bytes(whole.file_uri(entry.path)) for entry in whole.files}
    data = publish(
        "latent-dataset", "decodable", shards, inputs={"checkpoint": tokenizer},
        metas={entry.path: entry.meta for entry in whole.files},
    )  # fmt: skip
    settings = {"data": data, "samples": 1, "sample_steps": 2, "shown": 1}
    result = run(config(diffusion, storage_root, **settings), store, progress)
    with av.open(io.BytesIO(read(result.manifest, "pictures/sample-00.mp4"))) as video:
        frames = list(video.decode(video=0))
    assert len(frames) == 17 and frames[0].width == 2 * 96, "before and after, side by side"
    assert b"(decoded)" in read(result.manifest, "report.html")


def test_a_model_that_was_chosen_on_the_held_out_clips_is_said_to_be(
    diffusion: Any, store: Any, storage_root: Any, progress: Any
) -> None:
    best = run(config(diffusion, storage_root, training=diffusion.best), store, progress).manifest
    assert any("step 12 of 40" in note and "too good" in note for note in best.summary["notes"])
    page = store.get_bytes(best.file_uri("report.html")).decode()
    assert "step 12 of 40" in page
    other = config(diffusion, storage_root, training=diffusion.unchanged)
    assert not any(
        "chosen" in note for note in run(other, store, progress).manifest.summary["notes"]
    )
