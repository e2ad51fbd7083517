"""The canonical model folder: `config.json` and safetensors under the official parameter names.

Every stage hands models on in this one form, whatever they were imported from. Weights go first,
in shards of at most `SHARD_BYTES` that are written one at a time (a 14B model never lies in
memory twice), then the index, then `config.json`; a folder without `config.json` is no model, so
an interrupted save is never read. Loading is strict: every missing, unexpected and mis-shaped
key is named, and nothing is loaded when there is one.

The trade-off: weights are copied into the module instead of being mapped in place, which costs a
pass over the bytes and leaves the file free to be replaced while the model lives.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from components.lib.contract import Frozen, UserError
from components.lib.cosmos.families import FamilyName

if TYPE_CHECKING:
    import torch

    from components.lib.cosmos.dit.network import DiT
    from components.lib.cosmos.tokenizer.network import CosmosTokenizer
    from components.lib.manifest import Manifest
    from components.lib.store import ObjectStore

FORMAT = "cosmos-pipelines/1"
CONFIG_NAME = "config.json"
STEM = "model"
SHARD_BYTES = 2 * 1024**3

Weights = Mapping[str, "torch.Tensor"] | Iterable[tuple[str, "torch.Tensor"]]


class ModelConfig(Frozen):
    """What `config.json` of a canonical folder holds."""

    format: Literal["cosmos-pipelines/1"] = "cosmos-pipelines/1"
    family: FamilyName
    name: str
    config: dict[str, Any]


class TensorSpec(Frozen):
    """Shape and dtype name (as torch prints it, without ``torch.``) of one tensor."""

    shape: tuple[int, ...]
    dtype: str = ""


def save_model_folder(
    folder: Path,
    family: str,
    name: str,
    config: Mapping[str, Any] | Frozen,
    state_dict: Weights,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write a canonical folder and return it. Tensors keep their dtype.

    ``state_dict`` may be an iterator of pairs; then at most one shard is in memory. Weights that
    an earlier save left in the folder are replaced.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_NAME).unlink(missing_ok=True)
    write_safetensors(folder, "model", state_dict, shard_bytes=shard_bytes)
    values = config.model_dump(mode="json") if isinstance(config, Frozen) else dict(config)
    model = ModelConfig(family=family, name=name, config=values)
    _write_json(folder / CONFIG_NAME, model.model_dump(mode="json"))
    return folder


def write_safetensors(
    folder: Path, stem: str, weights: Weights, *, shard_bytes: int = SHARD_BYTES
) -> list[Path]:
    """Write ``stem.safetensors``, or numbered shards and their index; replaces what was there.

    Names and index are those that transformers and diffusers use.
    """
    from safetensors.torch import save_file

    (folder / f"{stem}.safetensors.index.json").unlink(missing_ok=True)
    for stale in [*folder.glob(f"{stem}*.safetensors"), *folder.glob(f"{stem}*.partial")]:
        stale.unlink()
    shards: list[list[str]] = []
    total = 0
    for shard in _shards(_pairs(weights), shard_bytes):
        path = folder / f"{stem}-{len(shards) + 1:05d}.partial"
        save_file(shard, str(path), metadata={"format": "pt"})
        shards.append(list(shard))
        total += sum(tensor.nbytes for tensor in shard.values())
    count = len(shards)
    names = [f"{stem}-{number + 1:05d}-of-{count:05d}.safetensors" for number in range(count)]
    if count == 1:
        names = [f"{stem}.safetensors"]
    for number, final in enumerate(names):
        path = folder / f"{stem}-{number + 1:05d}.partial"
        path.chmod(0o644)  # safetensors makes files that only their owner can read
        path.replace(folder / final)
    if count > 1:
        weight_map = {key: final for final, keys in zip(names, shards, strict=True) for key in keys}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / f"{stem}.safetensors.index.json", index)
    return [folder / name for name in names]


def _pairs(state_dict: Weights) -> Iterator[tuple[str, torch.Tensor]]:
    yield from state_dict.items() if isinstance(state_dict, Mapping) else state_dict


def _shards(
    pairs: Iterator[tuple[str, torch.Tensor]], shard_bytes: int
) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for key, tensor in pairs:
        if shard and size + tensor.nbytes > shard_bytes:
            yield shard
            shard, size = {}, 0
        # safetensors refuses views that share a storage, such as slices of one big tensor.
        plain = tensor.detach().cpu().contiguous()
        shared = plain.untyped_storage().nbytes() != plain.nbytes
        shard[key] = plain.clone() if shared else plain
        size += plain.nbytes
    yield shard


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    temporary.replace(path)


def is_model_folder(folder: Path) -> bool:
    """Whether ``folder`` has a `config.json` of the canonical form."""
    path = Path(folder) / CONFIG_NAME
    if not path.is_file():
        return False
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        return False
    return isinstance(value, dict) and value.get("format") == FORMAT


def read_model_config(folder: Path) -> ModelConfig:
    """The folder's config. Raises UserError when the folder is no canonical model."""
    path = Path(folder) / CONFIG_NAME
    if not path.is_file():
        raise UserError(
            f"{folder} holds no model: {CONFIG_NAME} is missing. Give a folder that "
            "'cosmos-pipelines convert … --to canonical', a fetch or a training run wrote."
        )
    try:
        return ModelConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(
            f"{path} is not the config of a canonical model folder: {where}: {first['msg']}. "
            "Convert the checkpoint with 'cosmos-pipelines convert SRC DST --to canonical'."
        ) from error


def weight_files(folder: Path, stem: str = STEM) -> list[Path]:
    """The safetensors files of a folder, in order. Raises UserError naming one that is missing."""
    folder = Path(folder)
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        names = [f"{stem}.safetensors"]
    else:
        try:
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{index} is not an index of safetensors files.") from error
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(f"{folder} lacks the weights {name}. Fetch or convert it again.")
    return [folder / name for name in names]


def read_specs(folder: Path, stem: str = STEM) -> dict[str, TensorSpec]:
    """Key -> shape and dtype, from the headers alone."""
    specs: dict[str, TensorSpec] = {}
    for path in weight_files(folder, stem):
        with _open(path) as source:
            for key in source.keys():  # noqa: SIM118 - safe_open is no mapping
                part = source.get_slice(key)
                specs[key] = TensorSpec(shape=tuple(part.get_shape()), dtype=part.get_dtype())
    return specs


def read_weights(folder: Path, stem: str = STEM) -> Iterator[tuple[str, torch.Tensor]]:
    """Pairs of key and tensor, one tensor in memory at a time."""
    for path in weight_files(folder, stem):
        with _open(path) as source:
            for key in source.keys():  # noqa: SIM118
                yield key, source.get_tensor(key)


def load_state_dict(folder: Path) -> dict[str, torch.Tensor]:
    """All weights of a canonical folder on the CPU."""
    return dict(read_weights(folder))


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a readable safetensors file ({error}). Fetch or convert it again."
        ) from error


def check_keys(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Raise UserError that lists every missing, unexpected and mis-shaped key of ``where``."""
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    shapes = [
        f"{key} has shape {list(found[key])}, wanted {list(shape)}"
        for key, shape in expected.items()
        if key in found and tuple(found[key]) != tuple(shape)
    ]
    problems = [
        f"{len(entries)} {what}: {_listed(entries)}"
        for what, entries in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
        )
        if entries
    ]
    if problems:
        raise UserError(
            f"{where} does not hold the weights of this network, nothing was loaded; "
            f"{'; '.join(problems)}. Is it the checkpoint of another model?"
        )


def _listed(entries: list[str], limit: int = 40) -> str:
    rest = f" and {len(entries) - limit} more" if len(entries) > limit else ""
    return ", ".join(entries[:limit]) + rest


def load_weights(
    model: torch.nn.Module,
    folder: Path,
    dtype: torch.dtype | None = None,
    extras: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Put a folder's weights into ``model``, all keys or none.

    Keys are checked from the file headers before any weight is read. ``dtype`` None keeps the
    dtype that each floating-point weight has in the file. Tensors stored under the names of
    ``extras`` are returned as they are, and a folder may lack them all.
    """
    own = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    found = {key: spec.shape for key, spec in read_specs(folder).items()}
    beside = {key: tuple(tensor.shape) for key, tensor in (extras or {}).items()}
    if any(key in found for key in beside):
        own.update(beside)
    check_keys(own, found, str(folder))
    weights, others = {}, {}
    for key, tensor in read_weights(folder):
        if key in beside:
            others[key] = tensor
        elif dtype is not None and tensor.is_floating_point():
            weights[key] = tensor.to(dtype)
        else:
            weights[key] = tensor
    model.load_state_dict(weights, strict=True, assign=True)
    return others


def load_dit(
    folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> DiT:
    """The diffusion transformer of a canonical folder, in eval mode, with the device's attention.

    ``dtype`` None keeps the dtype of the file. Raises UserError for a folder of another family
    and for keys that do not match.
    """
    from components.lib.cosmos.dit.attention import choose
    from components.lib.cosmos.dit.network import DiT, DiTConfig, configure_blocks

    model_config = _expect(folder, "dit")
    model = DiT(_parse(DiTConfig, model_config, folder), seed=None)
    load_weights(model, folder, dtype)
    model = model.to(device).eval()
    where = next(model.parameters()).device
    configure_blocks(model, attention=choose("auto", where, model.config.head_dim))
    return model


def load_tokenizer(
    folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> CosmosTokenizer:
    """The video tokenizer of a canonical folder with its latent statistics; else as `load_dit`."""
    from components.lib.cosmos.tokenizer.network import CosmosTokenizer, TokenizerConfig

    model_config = _expect(folder, "tokenizer")
    model = CosmosTokenizer(_parse(TokenizerConfig, model_config, folder))
    statistics = load_weights(model, folder, dtype, extras=model.extra_state_tensors())
    if statistics:
        model.set_latent_statistics(statistics["latents_mean"], statistics["latents_std"])
    return model.to(device).eval()


def _expect(folder: Path, family: str) -> ModelConfig:
    model_config = read_model_config(folder)
    if model_config.family != family:
        raise UserError(
            f"{folder} holds '{model_config.name}', a model of family '{model_config.family}'; "
            f"a '{family}' is needed here."
        )
    return model_config


def _parse(cls: Any, model_config: ModelConfig, folder: Path) -> Any:
    try:
        return cls.model_validate(model_config.config)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{Path(folder) / CONFIG_NAME}: config.{where}: {first['msg']}. The folder may come "
            "from another version of cosmos-pipelines."
        ) from error


def download_model(
    manifest: Manifest, store: ObjectStore, folder: Path, prefix: str = "model/"
) -> Path:
    """Download and verify the files under ``prefix`` of a manifest; returns ``folder``.

    Works for checkpoint and training-run manifests. Files that are there already with the right
    digest are fetched again: callers give a folder of their own.
    """
    wanted = [entry for entry in manifest.files if entry.path.startswith(prefix)]
    if not wanted:
        raise UserError(
            f"{manifest.uri} holds no files under '{prefix}', so it is no model. Give the output "
            "of checkpoint_fetch or of training."
        )
    folder = Path(folder)
    transfers = []
    for entry in wanted:
        relative = Path(entry.path[len(prefix) :])
        if relative.is_absolute() or ".." in relative.parts:
            raise UserError(f"{manifest.uri} lists the unsafe path '{entry.path}'.")
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        transfers.append((manifest.file_uri(entry.path), target, entry.sha256))
    store.get_files(transfers)
    return folder
