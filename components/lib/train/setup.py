"""From a config to an engine: process group, data, network, shards, starting weights."""

from __future__ import annotations

import importlib
import os
from contextlib import suppress
from pathlib import Path

import torch

from components.lib.cosmos.families import family_named
from components.lib.shards.dataset import open_source
from components.lib.store import ObjectStore
from components.lib.train.engine import Engine
from components.lib.train.parallel.layout import ParallelLayout, shard_model
from components.lib.train.parallel.weights import load_shards
from components.lib.train.settings.config import TrainConfig
from components.lib.train.starting import fetch_model
from components.lib.train.tasks.task import TrainingTask


def open_store(config: TrainConfig) -> ObjectStore | None:
    """The object store, if the environment names one. UserError when it must and does not."""
    uris = [config.data.path, config.log.store_uri, config.start_path]
    if "AWS_ENDPOINT_URL" not in os.environ and not any(u.startswith("s3://") for u in uris):
        return None
    return ObjectStore.from_env()


def build_engine(config: TrainConfig, layout: ParallelLayout, store: ObjectStore | None) -> Engine:
    """Engine with starting weights, before any resume."""
    log_dir = Path(config.log.log_dir)
    start = fetch_model(config.start_path, store, log_dir / "start")
    cache = Path(config.data.cache_dir) if config.data.cache_dir else log_dir / "cache"
    source, manifest = open_source(
        config.data.path, store, cache_dir=cache, max_bytes=int(config.data.cache_gib * 2**30)
    )
    family = family_named(config.family)
    tasks = importlib.import_module(f"components.lib.train.tasks.{family.training}")
    task: TrainingTask = tasks.make_task(config, layout, source, manifest, store, start)
    model = task.model
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    if not on_meta:
        model.to(layout.device)
    shard_model(model, task.units(), layout, config.trainer, task.shard_dim)
    if on_meta:
        model.to_empty(device=layout.device)
    extras: dict[str, torch.Tensor] = {}
    if start is not None:
        extras = load_shards(model, start, layout, task.shard_dim, task.extra_names())
    task.after_sharding(extras)
    return Engine(config, layout, task)


def versions() -> dict[str, str]:
    """What the run was made with, for the settings file. A plain loop needs not all of it."""
    from importlib.metadata import PackageNotFoundError, version

    versions_of = {"cuda": torch.version.cuda or "none"}
    for name in ("torch", "megatron-core", "lightning", "nemo-toolkit", "diffusers"):
        with suppress(PackageNotFoundError):
            versions_of[name] = version(name)
    return versions_of
