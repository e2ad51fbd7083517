"""The training stage with real ranks, a real store and real video."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.lib.contract import Progress, UserError
from components.lib.cosmos.model_folder import download_model, load_dit, load_tokenizer
from components.lib.store import ObjectStore
from components.training.config import TrainingConfig
from components.training.stage import run

SHORT = ("trainer.max_steps=8", "trainer.val_check_interval=4", "log.ckpt.every_n_train_steps=4")


@pytest.fixture
def in_store(monkeypatch: pytest.MonkeyPatch, store_env: dict[str, str]) -> None:
    """Ranks inherit the environment, so the store's variables go there."""
    for name, value in store_env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.recipes
def test_diffusion_run_lists_model_metrics_and_checkpoints(
    in_store: None,
    store: ObjectStore,
    storage_root: str,
    progress: Progress,
    tiny_dit: str,
    latent_data: str,
    prompt_data: str,
    tmp_path: Path,
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
    in_store: None,
    store: ObjectStore,
    storage_root: str,
    progress: Progress,
    tiny_tokenizer: str,
    clip_data: str,
    tmp_path: Path,
) -> None:
    config = TrainingConfig(
        storage_root=storage_root,
        checkpoint=tiny_tokenizer,
        data=clip_data,
        factory="tiny_tokenizer",
        overrides=(*SHORT, "trainer.val_check_interval=2", "log.ckpt.export=best"),
        nproc=2,
    )
    result = run(config, store, progress)
    model = load_tokenizer(download_model(result.manifest, store, tmp_path / "trained"))
    assert model.config.channels == 16
    assert result.metrics["validation_psnr"] > 0
    assert result.manifest.summary["validation"] == "held-out"
    lines = store.get_bytes(result.manifest.file_uri("metrics.jsonl")).decode().splitlines()
    validated = [line for line in map(json.loads, lines) if line["split"] == "validation"]
    exported = result.manifest.summary["exported_step"]
    losses = {line["step"]: line["loss"] for line in validated}
    assert result.metrics["validation_loss"] == losses[exported]
    # of the steps that have both a checkpoint and a validation
    assert losses[exported] == min(losses[step] for step in (4, 8))


def test_a_failing_rank_fails_the_stage_with_its_reason(
    in_store: None,
    store: ObjectStore,
    storage_root: str,
    progress: Progress,
    tiny_tokenizer: str,
    clip_data: str,
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


CHILD = """
import sys
from components.lib.logs import configure_logging
from components.lib.progress import LineProgress
from components.lib.store import ObjectStore
from components.training.config import TrainingConfig
from components.training.stage import run
configure_logging()
run(TrainingConfig.model_validate_json(sys.argv[1]), ObjectStore.from_env(), LineProgress())
"""


@pytest.mark.resume
def test_a_terminated_stage_goes_on_from_its_checkpoint_elsewhere(
    in_store: None,
    store: ObjectStore,
    storage_root: str,
    tiny_dit: str,
    latent_data: str,
    prompt_data: str,
) -> None:
    config = TrainingConfig(
        storage_root=storage_root,
        checkpoint=tiny_dit,
        data=latent_data,
        prompts=prompt_data,
        factory="tiny_diffusion",
        overrides=("trainer.max_steps=10", "trainer.val_check_interval=0"),
        nproc=1,
    )
    command = [sys.executable, "-c", CHILD, config.model_dump_json()]
    stage = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 600
    while not any("settings" in info.uri for info in store.list(f"{storage_root}/training/")):
        assert time.monotonic() < limit
        time.sleep(0.1)
    stage.send_signal(signal.SIGTERM)
    _, said = stage.communicate()
    assert stage.returncode == 75, said
    saved = [info.uri for info in store.list(f"{storage_root}/training/") if "step-" in info.uri]
    assert any(uri.endswith("manifest.json") for uri in saved), said
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "resuming from" in again.stderr
    uri = next(
        i.uri
        for i in store.list(f"{storage_root}/training/")
        if i.uri.endswith("metrics.jsonl") and "step-" not in i.uri
    )
    records = [json.loads(line) for line in store.get_bytes(uri).decode().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 11))
