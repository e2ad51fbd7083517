"""The T5 encoder: transformers' own folder, without the decoder, in one dtype.

The published t5-11b is 45 GB of fp32 with a decoder that nothing here uses. Only the encoder is
kept, in bf16 unless asked otherwise: 9.6 GB, the same numbers that loading in bf16 gives.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from components.lib.contract import UserError
from components.lib.cosmos.formats.source_config import read_json

if TYPE_CHECKING:
    import torch

TextDtype = Literal["bfloat16", "float32"]
TOKENIZER_FILES = (
    "tokenizer.json",
    "spiece.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
MARKER = "t5"


def is_t5(folder: Path) -> bool:
    """Whether `config.json` says that the folder holds a T5 model."""
    return str(read_json(folder / "config.json").get("model_type", "")) in ("t5", "mt5", "umt5")


def convert_t5(source: Path, destination: Path, dtype: TextDtype = "bfloat16") -> dict[str, Any]:
    """Write the encoder of ``source`` and its tokenizer; returns the config.

    Raises UserError when weights are missing, unexpected or mis-shaped, or the tokenizer is not
    there. `config.json` is written last.
    """
    import torch
    from transformers import T5Config, T5EncoderModel

    from components.lib.cosmos.model_folder import check_keys, write_safetensors

    if not any((source / name).is_file() for name in TOKENIZER_FILES[:2]):
        raise UserError(f"{source} has no tokenizer: tokenizer.json and spiece.model are missing.")
    config = T5Config.from_pretrained(str(source), local_files_only=True)
    with torch.device("meta"):
        model = T5EncoderModel(config)
    wanted = {
        key: tuple(tensor.shape)
        for key, tensor in model.state_dict().items()
        if key != "encoder.embed_tokens.weight"  # the same tensor as shared.weight
    }
    stored: dict[str, tuple[int, ...]] = {}
    for key, tensor in _encoder_weights(source):
        stored[key] = tuple(tensor.shape)
    if "shared.weight" not in stored and "encoder.embed_tokens.weight" in stored:
        stored["shared.weight"] = stored["encoder.embed_tokens.weight"]
    stored.pop("encoder.embed_tokens.weight", None)
    check_keys(wanted, stored, str(source))
    destination.mkdir(parents=True, exist_ok=True)
    (destination / "config.json").unlink(missing_ok=True)
    kind = getattr(torch, dtype)
    write_safetensors(destination, "model", _renamed(source, kind, set(wanted)))
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, destination / name)
    values = read_json(source / "config.json")
    values.update(architectures=["T5EncoderModel"], dtype=dtype)
    values.pop("torch_dtype", None)
    (destination / "config.json").write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
    return values


def _renamed(
    source: Path, dtype: torch.dtype, wanted: set[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    done = set()
    for key, tensor in _encoder_weights(source):
        name = "shared.weight" if key == "encoder.embed_tokens.weight" else key
        if name in wanted and name not in done:
            done.add(name)
            yield name, tensor.to(dtype)


def _encoder_weights(source: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Pairs of the encoder, decoder and head left out, from safetensors or torch files."""
    from components.lib.cosmos.formats.official import load_pt
    from components.lib.cosmos.model_folder import read_weights

    outside = re.compile(r"^(decoder\.|lm_head\.)")
    index = read_json(source / "pytorch_model.bin.index.json")
    if list(source.glob("model*.safetensors")):
        for key, tensor in read_weights(source):
            if not outside.match(key):
                yield key, tensor
        return
    names = sorted(set(index.get("weight_map", {}).values())) or ["pytorch_model.bin"]
    for name in names:
        if not (source / name).is_file():
            raise UserError(f"{source} lacks the weights {name}. Fetch it again.")
        for key, tensor in load_pt(source / name).items():
            if not outside.match(key):
                yield key, tensor
