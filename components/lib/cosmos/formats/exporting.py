"""Writes a model in the form that other programs load, with a model card.

Whatever the source is, it is opened by its importer, checked strictly, and written in the new
form; a tensor is never rounded unless a dtype is asked for. A folder that is not empty is refused:
two models in one folder would be read as a mixture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from components.lib.contract import Frozen, UserError
from components.lib.cosmos.dit.config import DiTConfig
from components.lib.cosmos.formats import diffusers_folder, official
from components.lib.cosmos.formats.importing import (
    STATISTICS,
    OpenedCheckpoint,
    Say,
    expected_shapes,
    open_source,
)
from components.lib.cosmos.formats.model_card import Origin, model_card
from components.lib.cosmos.formats.source_config import write_config
from components.lib.cosmos.model_folder import check_keys, save_model_folder
from components.lib.cosmos.tokenizer.config import TokenizerConfig

if TYPE_CHECKING:
    import torch

Form = Literal["canonical", "diffusers", "jit", "model.pt"]
Dtype = Literal["keep", "bfloat16", "float16", "float32"]
FORMS: tuple[Form, ...] = ("canonical", "diffusers", "jit", "model.pt")


class ExportReport(Frozen):
    """What was written."""

    name: str
    family: str
    source_format: str
    form: Form
    files: tuple[str, ...]
    notes: tuple[str, ...]


def export_model(
    source: Path,
    destination: Path,
    form: Form,
    *,
    name: str = "",
    dtype: Dtype = "keep",
    origin: Origin | None = None,
    origin_text: str = "",
    say: Say = lambda message: None,
) -> ExportReport:
    """Convert ``source`` to ``form`` under ``destination``.

    Raises UserError when the destination is not empty, keys do not match, or the form cannot hold
    this network; then nothing is left behind under the destination.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise UserError(f"{destination} exists and is not an empty folder. Name a new one.")
    opened = open_source(source, say)
    check_keys(expected_shapes(opened.config), opened.shapes, str(source))
    destination.mkdir(parents=True, exist_ok=True)
    title = name or opened.name
    seen: dict[str, tuple[int, str]] = {}
    pairs = _cast(opened, dtype, seen)
    try:
        _writer(opened, form)(destination, opened, title, pairs)
    except BaseException:
        for path in destination.iterdir():
            path.unlink()
        destination.rmdir()
        raise
    dtypes: dict[str, int] = {}
    for count, kind in seen.values():
        dtypes[kind] = dtypes.get(kind, 0) + count
    card = model_card(
        title=title,
        family=opened.family,
        form=form,
        source=origin_text or str(source),
        config=opened.config.model_dump(mode="json"),
        parameters=sum(count for count, _ in seen.values()),
        dtypes=dtypes,
        notes=tuple(opened.notes),
        origin=origin,
    )
    (destination / "README.md").write_text(card)
    return ExportReport(
        name=title,
        family=opened.family,
        source_format=opened.source_format,
        form=form,
        files=tuple(sorted(path.name for path in destination.iterdir())),
        notes=tuple(opened.notes),
    )


Pairs = Iterator[tuple[str, "torch.Tensor"]]


def _cast(opened: OpenedCheckpoint, dtype: Dtype, seen: dict[str, tuple[int, str]]) -> Pairs:
    """The weights in the wanted dtype; counts them on the way. Buffers keep their dtype."""
    import torch

    for key, tensor in opened.read():
        value = tensor
        if key != diffusers_folder.COUNTER:
            if dtype != "keep" and tensor.is_floating_point():
                value = tensor.to(getattr(torch, dtype))
            seen[key] = (value.numel(), str(value.dtype).removeprefix("torch."))
        yield key, value


def _statistics(opened: OpenedCheckpoint) -> tuple[torch.Tensor, torch.Tensor]:
    from components.lib.cosmos.tokenizer.network import default_statistics

    assert isinstance(opened.config, TokenizerConfig)
    if all(key in opened.extras for key in STATISTICS):
        return opened.extras[STATISTICS[0]], opened.extras[STATISTICS[1]]
    return default_statistics(opened.config)


def _write_canonical(folder: Path, opened: OpenedCheckpoint, title: str, pairs: Pairs) -> None:
    def everything() -> Pairs:
        yield from pairs
        yield from opened.extras.items()

    save_model_folder(folder, opened.family, title, opened.config, everything())


def _dit_diffusers(folder: Path, opened: OpenedCheckpoint, title: str, pairs: Pairs) -> None:
    assert isinstance(opened.config, DiTConfig)
    values = diffusers_folder.dit_to_diffusers_config(opened.config)
    diffusers_folder.write_diffusers(folder, diffusers_folder.DIT_CLASS, values, pairs)


def _tokenizer_diffusers(folder: Path, opened: OpenedCheckpoint, title: str, pairs: Pairs) -> None:
    config = opened.config
    assert isinstance(config, TokenizerConfig)
    values = diffusers_folder.tokenizer_to_diffusers_config(config, *_statistics(opened))
    diffusers_folder.write_diffusers(
        folder, diffusers_folder.TOKENIZER_CLASS, values, pairs, len(config.multipliers)
    )


def _tokenizer_jit(folder: Path, opened: OpenedCheckpoint, title: str, pairs: Pairs) -> None:
    from components.lib.cosmos.formats.jit.exporting import write_jit

    assert isinstance(opened.config, TokenizerConfig)
    write_jit(folder, opened.config, dict(pairs))
    if opened.config.fsq_levels is None:
        official.write_mean_std(folder, *_statistics(opened))
    write_config(folder, opened.family, title, opened.config.model_dump(mode="json"))


def _dit_model_pt(folder: Path, opened: OpenedCheckpoint, title: str, pairs: Pairs) -> None:
    official.write_model_pt(folder / official.MODEL_NAME, dict(pairs))
    write_config(folder, opened.family, title, opened.config.model_dump(mode="json"))


Writer = Callable[[Path, OpenedCheckpoint, str, Pairs], None]
#: Forms beside the canonical one, which every family has.
_WRITERS: dict[str, dict[str, Writer]] = {
    "dit": {"diffusers": _dit_diffusers, "model.pt": _dit_model_pt},
    "tokenizer": {"diffusers": _tokenizer_diffusers, "jit": _tokenizer_jit},
}


def _writer(opened: OpenedCheckpoint, form: Form) -> Writer:
    writers = {"canonical": _write_canonical, **_WRITERS.get(opened.family, {})}
    if form not in writers:
        raise UserError(
            f"'{opened.name}' is a {opened.family}, which has no form '{form}'. "
            f"Use --to {' or '.join(writers)}."
        )
    return writers[form]
