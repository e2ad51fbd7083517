"""From a config to an engine: process group, data, network, shards, starting weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist

from components.lib.contract import UserError
from components.lib.manifest import Manifest, load_manifest
from components.lib.shards.dataset import largest_latent, open_source
from components.lib.store import ObjectStore
from components.lib.train.engine import Engine
from components.lib.train.parallel.layout import Layout, shard_model
from components.lib.train.parallel.weights import load_shards
from components.lib.train.settings.config import DiffusionConfig, TokenizerConfig
from components.lib.train.tasks.task import Task

AnyConfig = DiffusionConfig | TokenizerConfig


def open_store(config: AnyConfig) -> ObjectStore | None:
    """The object store, if the environment names one. UserError when it must and does not."""
    uris = [config.data.path, config.log.store_uri, start_path(config)]
    if "AWS_ENDPOINT_URL" not in os.environ and not any(u.startswith("s3://") for u in uris):
        return None
    return ObjectStore.from_env()


def start_path(config: AnyConfig) -> str:
    """Where the starting weights are, or an empty string."""
    if isinstance(config, TokenizerConfig) and config.model.jit_ckpt_pth:
        return config.model.jit_ckpt_pth
    return config.resume.restore_config.path


def local_rank() -> int:
    """Rank within this node."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def build_engine(config: AnyConfig, layout: Layout, store: ObjectStore | None) -> Engine:
    """Engine with starting weights, before any resume."""
    log_dir = Path(config.log.log_dir)
    start = fetch_model(start_path(config), store, log_dir / "start")
    cache = Path(config.data.cache_dir) if config.data.cache_dir else log_dir / "cache"
    source, manifest = open_source(
        config.data.path, store, cache_dir=cache, max_bytes=int(config.data.cache_gib * 2**30)
    )
    task: Task
    if isinstance(config, DiffusionConfig):
        from components.lib.shards.prompts import open_prompts
        from components.lib.train.tasks.diffusion import DiffusionTask

        prompts = open_prompts(config.data.prompts, store)
        task = DiffusionTask(config, layout, source, prompts, start, largest_latent(manifest))
    else:
        from components.lib.cosmos.perceptual import load_vgg16
        from components.lib.train.tasks.tokenizer import TokenizerTask, needs_flow, needs_vgg

        vgg = None
        if needs_vgg(config):
            folder = fetch_model(config.model.vgg_path, store, log_dir / "vgg")
            assert folder is not None
            vgg = load_vgg16(folder)
        flow = _flow_network(config, store, layout) if needs_flow(config) else None
        task = TokenizerTask(config, layout, source, vgg, start, flow)
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


def _flow_network(
    config: TokenizerConfig, store: ObjectStore | None, layout: Layout
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    path = config.model.flow_path
    if path.startswith("s3://"):
        assert store is not None
        local = Path(config.log.log_dir) / "flow" / f"{layout.rank}.pt"
        local.parent.mkdir(parents=True, exist_ok=True)
        path = str(store.get_file(path, local))
    if not Path(path).is_file():
        raise UserError(f"model.flow_path: there is no file {path}.")
    network = torch.jit.load(path, map_location=layout.device).eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network


def fetch_model(path: str, store: ObjectStore | None, folder: Path) -> Path | None:
    """A local canonical folder for a manifest, or a local checkpoint; None for an empty path.

    A local checkpoint may have any form that can be imported (official, NeMo, diffusers,
    TorchScript archives). One rank of each node downloads or converts; the others wait.
    """
    if not path:
        return None
    if not path.startswith("s3://") and Path(path).exists() and Path(path).suffix != ".json":
        return _local_model(Path(path), folder)
    if store is None:
        raise UserError(f"{path} is not a folder, and no object store is set up to read it from.")
    from components.lib.cosmos.model_folder import download_model

    ref = path if path.endswith(".json") else path.rstrip("/") + "/manifest.json"
    manifest = load_manifest(ref, store)
    target = folder / manifest.content[:16]
    if local_rank() == 0 and not _complete(target, manifest):
        download_model(manifest, store, target)
    dist.barrier()
    return target


def _local_model(path: Path, folder: Path) -> Path:
    from components.lib.cosmos.formats.importing import import_model
    from components.lib.cosmos.model_folder import is_model_folder

    if path.is_dir() and is_model_folder(path):
        return path
    target = folder / hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    if local_rank() == 0 and not is_model_folder(target):
        import_model(path, target)
    dist.barrier()
    return target


def _complete(folder: Path, manifest: Manifest) -> bool:
    """Whether every model file is there with the right digest."""
    for entry in manifest.files:
        if not entry.path.startswith("model/"):
            continue
        path = folder / entry.path.removeprefix("model/")
        if not path.is_file() or path.stat().st_size != entry.bytes:
            return False
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != entry.sha256:
                return False
    return True


def versions() -> dict[str, str]:
    """What the run was made with, for the settings file. A plain loop needs not all of it."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"cuda": torch.version.cuda or "none"}
    for name in ("torch", "megatron-core", "lightning", "nemo-toolkit", "diffusers"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
