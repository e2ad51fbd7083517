"""The training stage with real ranks, a real store and real video."""

from __future__ import annotations

import json

import pytest

from components.lib.contract import UserError
from components.lib.cosmos.model_folder import download_model, load_dit, load_tokenizer
from components.lib.store import ObjectStore
from components.training.stage import TrainingConfig, run

SHORT = ("trainer.max_steps=8", "trainer.val_check_interval=4", "log.ckpt.every_n_train_steps=4")


@pytest.fixture
def in_store(monkeypatch: pytest.MonkeyPatch, store_env: dict[str, str]) -> None:
    """Ranks inherit the environment, so the store's variables go there."""
    for name, value in store_env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.recipes
def test_diffusion_run_lists_model_metrics_and_checkpoints(
    in_store,
    store: ObjectStore,
    storage_root,
    progress,
    tiny_dit,
    latent_data,
    prompt_data,
    tmp_path,
) -> None:
    config = TrainingConfig(
        storage_root=storage_root,
        checkpoint=tiny_dit,
        data=latent_data,
        prompts=prompt_data,
        factory="tiny_diffusion",
        overrides=SHORT,
        nproc=2,
    )
    result = run(config, store, progress)
    manifest = result.manifest
    assert manifest.kind == "training-run"
    model = load_dit(download_model(manifest, store, tmp_path / "trained"))
    assert model.config.hidden == 128
    lines = store.get_bytes(manifest.file_uri("metrics.jsonl")).decode().splitlines()
    records = [json.loads(line) for line in lines]
    assert [r["step"] for r in records if r["split"] == "train"] == list(range(1, 9))
    assert [r["step"] for r in records if r["split"] == "validation"] == [0, 4, 8]
    assert result.metrics["last_loss"] < 0.9 * result.metrics["first_loss"]
    assert any(e.path.startswith("checkpoints/step-00000008/") for e in manifest.files)
    assert run(config, store, progress).reused


@pytest.mark.recipes
def test_tokenizer_run_on_real_video(
    in_store, store: ObjectStore, storage_root, progress, tiny_tokenizer, clip_data, tmp_path
) -> None:
    config = TrainingConfig(
        storage_root=storage_root,
        checkpoint=tiny_tokenizer,
        data=clip_data,
        factory="tiny_tokenizer",
        overrides=SHORT,
        nproc=2,
    )
    result = run(config, store, progress)
    model = load_tokenizer(download_model(result.manifest, store, tmp_path / "trained"))
    assert model.config.channels == 16
    assert result.metrics["validation_psnr"] > 0
    assert result.manifest.summary["validation"] == "held-out"


def test_a_failing_rank_fails_the_stage_with_its_reason(
    in_store, store: ObjectStore, storage_root, progress, tiny_tokenizer, clip_data
) -> None:
    config = TrainingConfig(
        storage_root=storage_root,
        checkpoint=tiny_tokenizer,
        data=clip_data,
        factory="tiny_tokenizer",
        overrides=("data.task_encoder.temporal_crop=1001",),
        nproc=1,
    )
    with pytest.raises(UserError, match="temporal_crop"):
        run(config, store, progress)
    assert not [info for info in store.list(storage_root + "/training/") if "manifest" in info.uri]
