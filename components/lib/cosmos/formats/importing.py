"""One entry for every form a checkpoint comes in: recognise, read, check strictly, write canonical.

Each reader yields official names and tensors plus the settings they belong to. The keys and
shapes are compared with the network's own before the first byte is written, so a checkpoint with
one key missing, renamed or transposed is refused by that key's name and leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from components.lib.contract import Frozen, UserError
from components.lib.cosmos.dit.config import DIT_PRESETS, DiTConfig
from components.lib.cosmos.families import family_named, family_of
from components.lib.cosmos.formats import diffusers_folder, names, nemo, official, vgg
from components.lib.cosmos.formats.source_config import (
    nearest_preset,
    own_config,
    read_json,
)
from components.lib.cosmos.formats.text_encoder import TextDtype, convert_t5, is_t5
from components.lib.cosmos.model_folder import (
    check_keys,
    is_model_folder,
    read_model_config,
    read_specs,
    read_weights,
    save_model_folder,
)
from components.lib.cosmos.shapes import state_shapes
from components.lib.cosmos.tokenizer.config import TOKENIZER_PRESETS, TokenizerConfig

if TYPE_CHECKING:
    import torch

SourceFormat = Literal["canonical", "model.pt", "nemo", "diffusers", "jit", "t5", "vgg16"]
Say = Callable[[str], None]
STATISTICS = ("latents_mean", "latents_std")


class ImportReport(Frozen):
    """What was imported: the network, the form it came in, and what a reader should know."""

    family: str
    name: str
    source_format: SourceFormat
    tensors: int
    notes: tuple[str, ...] = ()


@dataclass
class OpenedCheckpoint:
    """A readable checkpoint: settings, shapes under official names, and the tensors."""

    family: str
    name: str
    config: Frozen
    source_format: SourceFormat
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[], Iterator[tuple[str, torch.Tensor]]]
    extras: dict[str, torch.Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def detect(folder: Path) -> SourceFormat:
    """The form of the checkpoint in ``folder``. Raises UserError that lists what is looked for."""
    if not folder.exists():
        raise UserError(f"There is no file or folder {folder}.")
    if folder.is_file():
        return "model.pt" if folder.suffix in (".pt", ".pth") else "jit"
    for form, recognise in _RECOGNISED.items():
        if recognise(folder):
            return form
    listing = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise UserError(
        f"{folder} is no checkpoint that can be read: it holds {listing}. Known are model.pt, a "
        "NeMo folder (nemo/ or metadata.json), diffusers folders, autoencoder.jit, a T5 folder "
        "of transformers, VGG16 weights, and canonical folders of cosmos-pipelines."
    )


_RECOGNISED: dict[SourceFormat, Callable[[Path], object]] = {
    "canonical": is_model_folder,
    "diffusers": diffusers_folder.component_folder,
    "model.pt": lambda folder: (folder / official.MODEL_NAME).is_file(),
    "nemo": nemo.nemo_folder,
    "jit": lambda folder: list(folder.glob("*coder.jit")),
    "t5": is_t5,
    "vgg16": lambda folder: [*folder.glob("*.safetensors"), *folder.glob("*.pth")],
}


def import_model(
    source: Path,
    destination: Path,
    *,
    role: str | None = None,
    name: str = "",
    text_dtype: TextDtype = "bfloat16",
    say: Say = lambda message: None,
) -> ImportReport:
    """Convert any known checkpoint to a canonical folder (T5: to transformers' own).

    ``role`` set, a checkpoint of another family is refused. ``name`` replaces the one that the
    checkpoint gives. Raises UserError naming every key that does not match.
    """
    source_format = detect(source)
    if source_format == "t5":
        _check_role(role, "t5", source)
        values = convert_t5(source, destination, text_dtype)
        note = f"encoder only, weights in {text_dtype}"
        title = name or source.name
        return ImportReport(
            family="t5", name=title, source_format="t5", tensors=len(values), notes=(note,)
        )
    if role == "t5":
        raise UserError(f"{source} is no T5 text encoder: its config.json has no model_type t5.")
    opened = open_source(source, say)
    _check_role(role, opened.family, source)
    write_canonical(opened, source, destination, name)
    return ImportReport(
        family=opened.family,
        name=name or opened.name,
        source_format=source_format,
        tensors=len(opened.shapes),
        notes=tuple(opened.notes),
    )


def write_canonical(
    opened: OpenedCheckpoint, source: Path, destination: Path, name: str = ""
) -> None:
    """Check an opened checkpoint against its network and write it as a canonical folder."""
    check_keys(expected_shapes(opened.config), opened.shapes, str(source))

    def pairs() -> Iterator[tuple[str, torch.Tensor]]:
        yield from opened.read()
        yield from opened.extras.items()

    save_model_folder(destination, opened.family, name or opened.name, opened.config, pairs())


def open_source(source: Path, say: Say = lambda message: None) -> OpenedCheckpoint:
    """Open any checkpoint of a network (not T5) without reading its weights where possible."""
    readers: dict[str, Callable[[Path, Say], OpenedCheckpoint]] = {
        "canonical": _open_canonical,
        "model.pt": _open_model_pt,
        "nemo": _open_nemo,
        "diffusers": _open_diffusers,
        "jit": _open_jit,
        "vgg16": _open_vgg,
    }
    source_format = detect(source)
    if source_format not in readers:
        raise UserError(f"{source} is a text encoder, which has no other forms.")
    return readers[source_format](source, say)


def expected_shapes(config: Frozen) -> dict[str, tuple[int, ...]]:
    """Every name and shape of a network's state dict, without allocating its weights."""
    family = family_of(config)
    if family.network:
        return state_shapes(config)
    return dict(family.load(family.shapes)(config))


def _open_canonical(source: Path, say: Say) -> OpenedCheckpoint:
    model = read_model_config(source)
    config = family_named(model.family).settings_class().model_validate(model.config)
    specs = read_specs(source)
    extras = {key: tensor for key, tensor in read_weights(source) if key in STATISTICS}
    return OpenedCheckpoint(
        family=model.family,
        name=model.name,
        config=config,
        source_format="canonical",
        shapes={key: spec.shape for key, spec in specs.items() if key not in STATISTICS},
        read=lambda: ((k, v) for k, v in read_weights(source) if k not in STATISTICS),
        extras=extras,
    )


def _open_model_pt(source: Path, say: Say) -> OpenedCheckpoint:
    path = source if source.is_file() else source / official.MODEL_NAME
    return dit_source(official.read_model_pt(path), path.parent, str(path), "model.pt")


def dit_source(
    weights: Mapping[str, torch.Tensor],
    folder: Path,
    where: str,
    source_format: SourceFormat,
    adaln_rank: int | None = None,
) -> OpenedCheckpoint:
    """A DiT from tensors under official names; ``weights`` may be lazy."""
    kept = [key for key in weights if not names.is_ignorable(key)]
    if isinstance(weights, nemo.LazyWeights):
        shapes = {key: weights.entries[key].shape for key in kept}
    else:
        shapes = {key: tuple(weights[key].shape) for key in kept}
    own = own_config(folder, "dit", DiTConfig)
    if own is None:
        presets = {
            preset: {k: s for k, s in state_shapes(config).items() if k != diffusers_folder.COUNTER}
            for preset, config in DIT_PRESETS.items()
        }
        preset = nearest_preset(shapes, presets, where)
        own = preset, DIT_PRESETS[preset]
    name, config = own
    if adaln_rank is not None:
        config = config.model_copy(update={"adaln_rank": adaln_rank})
    shapes[diffusers_folder.COUNTER] = tuple(counter(config).shape)

    def read() -> Iterator[tuple[str, torch.Tensor]]:
        yield diffusers_folder.COUNTER, counter(config)
        for key in kept:
            yield key, weights[key]

    return OpenedCheckpoint("dit", name, config, source_format, shapes, read)


def counter(config: DiTConfig) -> torch.Tensor:
    """The buffer `pos_embedder.seq`: 0, 1, 2, …; no file is trusted with it."""
    import torch

    shape = state_shapes(config)[diffusers_folder.COUNTER]
    return torch.arange(shape[0], dtype=torch.float32)


def _open_nemo(source: Path, say: Say) -> OpenedCheckpoint:
    folder = nemo.nemo_folder(source)
    assert folder is not None
    weights, rank, notes = nemo.read_nemo(folder)
    opened = dit_source(weights, source, str(folder), "nemo", rank)
    opened.notes += notes
    return opened


def _open_diffusers(source: Path, say: Say) -> OpenedCheckpoint:
    place = diffusers_folder.component_folder(source)
    assert place is not None
    folder, class_name = place
    extras: dict[str, torch.Tensor] = {}
    config: DiTConfig | TokenizerConfig
    if class_name == diffusers_folder.DIT_CLASS:
        family, config, levels = "dit", diffusers_folder.dit_from_diffusers_config(folder), 0
    else:
        family = "tokenizer"
        config, mean, std = diffusers_folder.tokenizer_from_diffusers_config(folder)
        extras = {"latents_mean": mean, "latents_std": std}
        levels = len(config.multipliers)

    def rename(key: str) -> str:
        return diffusers_folder.from_diffusers(key, class_name, levels)

    stem = diffusers_folder.STEM
    shapes = {rename(key): spec.shape for key, spec in read_specs(folder, stem).items()}
    first: list[tuple[str, torch.Tensor]] = []
    if isinstance(config, DiTConfig):
        first = [(diffusers_folder.COUNTER, counter(config))]
        shapes[diffusers_folder.COUNTER] = tuple(first[0][1].shape)

    def read() -> Iterator[tuple[str, torch.Tensor]]:
        yield from first
        for key, tensor in read_weights(folder, stem):
            yield rename(key), tensor

    name = _preset_name(config) or f"{family} of diffusers"
    return OpenedCheckpoint(family, name, config, "diffusers", shapes, read, extras)


def _open_jit(source: Path, say: Say) -> OpenedCheckpoint:
    from components.lib.cosmos.formats.jit import importing as jit_import

    folder = source if source.is_dir() else source.parent
    weights = jit_import.read_archives(folder, say)
    weights = {key: value for key, value in weights.items() if not names.is_ignorable(key)}
    shapes = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    own = own_config(folder, "tokenizer", TokenizerConfig)
    if own is None:
        presets = {name: state_shapes(config) for name, config in TOKENIZER_PRESETS.items()}
        preset = nearest_preset(shapes, presets, str(folder))
        own = preset, TOKENIZER_PRESETS[preset]
    name, config = own
    notes = ["read from TorchScript archives, which are code, in a child process"]
    extras, note = _statistics(folder, config)
    return OpenedCheckpoint(
        "tokenizer",
        name,
        config,
        "jit",
        shapes,
        lambda: iter(weights.items()),
        extras,
        [*notes, *note],
    )


def _statistics(folder: Path, config: TokenizerConfig) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Latent statistics beside a tokenizer, and a note when they are not there."""
    from components.lib.cosmos.tokenizer.network import default_statistics

    path = folder / official.MEAN_STD_NAME
    if path.is_file():
        tables = official.read_mean_std(path, config.latent_channels, config.window_latents)
        return dict(zip(STATISTICS, tables, strict=True)), []
    if config.fsq_levels is not None:
        return {}, []
    known = "the published table" if config.statistics != "none" else "mean 0 and deviation 1"
    note = f"{official.MEAN_STD_NAME} is not there, so latents are normalised with {known}"
    return dict(zip(STATISTICS, default_statistics(config), strict=True)), [note]


def _open_vgg(source: Path, say: Say) -> OpenedCheckpoint:
    weights = vgg.read_vgg(source)
    config = vgg.vgg_config(weights)
    name = str(read_json(source / "config.json").get("architecture", "vgg16"))
    return OpenedCheckpoint(
        "vgg16",
        name,
        config,
        "vgg16",
        {key: tuple(tensor.shape) for key, tensor in weights.items()},
        lambda: iter(weights.items()),
    )


def _preset_name(config: Frozen) -> str:
    presets = family_of(config).preset_settings()
    return next((name for name, preset in presets.items() if preset == config), "")


def _check_role(role: str | None, family: str, source: Path) -> None:
    if role is not None and role != family:
        raise UserError(
            f"{source} holds a model of family '{family}', but role is '{role}'. Give the source "
            "of the right model, or the right role."
        )
