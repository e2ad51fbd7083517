"""Post-train on many processes: start the ranks, follow them, list what they wrote.

The trainer (`components.lib.train`) writes checkpoints, metrics and the model straight to this
stage's output prefix, from wherever its ranks run. A stage that is started again finds the newest
complete checkpoint there and goes on from it, on another machine as well. This module only makes
the command line, hands it to a launcher and turns the trainer's result file into a manifest.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from components.lib import environment
from components.lib.contract import Progress, UserError
from components.lib.cosmos.families import family_named
from components.lib.manifest import MANIFEST_NAME, FileEntry, Manifest
from components.lib.run_files import METRICS, RESULT
from components.lib.stage import Output, StageResult, execute
from components.lib.store import ObjectStore
from components.lib.train.settings.auto_layout import GUIDE_TP
from components.lib.train.settings.config import TrainConfig
from components.lib.train.settings.overrides import apply_overrides
from components.lib.train.settings.recipes import recipe
from components.training.config import SPEC, TrainingConfig
from components.training.launch.interface import (
    GPU_PRODUCT,
    GPU_TAINT,
    LaunchRequest,
    SecretValue,
    guide_environment,
    job_name,
)
from components.training.launch.kinds import launcher_named
from components.training.launch.names import STORE, WANDB

#: What fills the ranks' variables: the same keys as those of the pipelines' own steps.
_SECRETS = {
    variable: SecretValue(
        secret=secret.name, key=key, optional=secret.optional or key in secret.optional_keys
    )
    for secret in (STORE, WANDB)
    for key, variable in secret.variables.items()
}


def run(config: TrainingConfig, store: ObjectStore, progress: Progress) -> StageResult:
    """Train. Output: ``model/``, ``metrics.jsonl``, ``settings.json``, ``checkpoints/``, …"""

    def work(inputs: dict[str, Manifest], output: Output) -> None:
        train(config, inputs, output, progress)

    return execute(SPEC, config, store, progress, work)


def train(
    config: TrainingConfig, inputs: dict[str, Manifest], output: Output, progress: Progress
) -> None:
    """Launch the ranks and list what they left. Raises UserError when they failed."""
    settings = trainer_overrides(config, inputs, output)
    resolved = apply_overrides(recipe(config.factory), settings)
    request = launch_request(config, output, settings, resolved)
    if _result(output) is None:
        launcher_named(config.launcher)(request, progress)
    result = _result(output)
    if result is None:
        raise UserError(
            f"Training ended without an error but {output.uri}{RESULT} is missing. Did its ranks "
            "write to another object store?"
        )
    collect(result, output)


def trainer_overrides(
    config: TrainingConfig, inputs: dict[str, Manifest], output: Output
) -> list[str]:
    """The trainer's overrides: the user's first, then what the pipeline decides."""

    def uri(name: str) -> str:
        return inputs[name].uri + MANIFEST_NAME

    decided = [f"data.path={uri('data')}", f"log.store_uri={output.uri}"]
    settings = family_named(recipe(config.factory).family).inputs
    decided += [f"{setting}={uri(name)}" for name, setting in settings.items() if name in inputs]
    return [*config.overrides, *decided]


def launch_request(
    config: TrainingConfig,
    output: Output,
    settings: list[str],
    resolved: TrainConfig,
) -> LaunchRequest:
    """What the launcher is asked for."""
    local = config.launcher == "process"
    log_dir = str(output.scratch / "train") if local else "/tmp/cosmos-train"  # noqa: S108
    gpus = _local_gpus() if local else config.gpus_per_node
    tensor_parallel = resolved.trainer.strategy.tensor_model_parallel_size
    if not tensor_parallel:  # the ranks will choose
        tensor_parallel = GUIDE_TP if gpus and gpus % GUIDE_TP == 0 else 1
    address = output.uri.rstrip("/").rsplit("/", 1)[-1]
    fields: dict[str, Any] = {
        "name": job_name(address),
        "image": config.image or "local",
        "command": (
            *("-m", "components.lib.train", "--yes", "--factory", config.factory),
            *settings,
            f"log.log_dir={log_dir}",
        ),
        "env": guide_environment(gpus, tensor_parallel),
        "nodes": config.nodes,
        "gpus_per_node": gpus,
        "processes_per_node": config.nproc or (gpus or 2),
        "grace_seconds": config.grace_seconds,
    }
    if not local:
        fields["image"] = config.image or _own_image()
        fields["secret_env"] = _SECRETS
        if gpus:
            fields["tolerations"] = ({"key": GPU_TAINT, "effect": "NoSchedule"},)
            if kind := os.environ.get(environment.GPU_TYPE):
                fields["node_selector"] = {GPU_PRODUCT: kind}
    fields |= config.job
    try:
        return LaunchRequest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UserError(f"Stage training, field 'job.{name}': {first['msg']}.") from error


def collect(result: dict[str, Any], output: Output) -> None:
    """List the files of the run and its remaining checkpoints; fill summary and metrics."""
    for entry in result["files"]:
        found = output.finished(FileEntry.model_validate(entry).path)
        if found is None or found.sha256 != entry["sha256"]:
            raise UserError(f"{output.uri}{entry['path']} is not what training wrote. Train again.")
    for prefix in ("checkpoints/", "pictures/"):
        for info in output.store.list(output.uri + prefix):
            output.finished(info.uri[len(output.uri) :])
    lines = output.store.get_bytes(output.uri + METRICS).decode().splitlines()
    records = [json.loads(line) for line in lines]
    losses = [record["loss"] for record in records if record["split"] == "train"]
    exported = result.get("exported_step", result["steps"])
    held_out = [
        record
        for record in records
        if record["split"] == "validation" and record["step"] <= exported
    ]
    tenth = max(len(losses) // 10, 1)
    output.summary |= {**result["run"], "steps": result["steps"], "exported_step": exported}
    output.metrics["first_loss"] = sum(losses[:tenth]) / tenth
    output.metrics["last_loss"] = sum(losses[-tenth:]) / tenth
    output.timing["training_seconds"] = float(result["seconds"])
    for name in ("loss", "psnr", "ssim"):
        if held_out and name in held_out[-1]:
            output.metrics[f"validation_{name}"] = held_out[-1][name]


def _result(output: Output) -> dict[str, Any] | None:
    """The trainer's result file, which it writes last."""
    uri = output.uri + RESULT
    if output.store.stat(uri) is None:
        return None
    return dict(json.loads(output.store.get_bytes(uri)))


def _local_gpus() -> int:
    """GPUs of this machine, counted without importing torch."""
    return sum(1 for path in Path("/dev").glob("nvidia*") if path.name[6:].isdigit())


def _own_image() -> str:
    """The image this step runs in: compiled pipelines name it, digest and all."""
    from components import images

    return os.environ.get(environment.TRAIN_IMAGE, images.TRAIN)
